"""Who handles a message: shards and their owners, delivery, mailboxes, entities."""
