"""The pages of Trellis itself: how every model stands, why, and what comes next. Read-only, in a process of its own."""
