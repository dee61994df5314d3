"""One thin file a framework, none of which knows another; nothing here is imported unless an application does."""
