"""What the report shows: experiments become a summary, and the summary a page."""
