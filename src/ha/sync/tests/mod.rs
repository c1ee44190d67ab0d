//! Tests of synchronous replication.
