//! Synchronous replication, decision by decision; what all of it together is worth is seen in `walk`.
