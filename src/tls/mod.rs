//! TLS as this program speaks it, always by rustls: what is in the files, and what a client or a server makes of it.
//!
//! | file | thought |
//! |---|---|
//! | [`files`] | certificates, keys and authorities in PEM files; when a certificate ends |
//! | [`client`] | whom we believe, and what we show |
//! | [`ciphers`] | OpenSSL's names of ciphers |
//! | [`server`] | what the REST API shows and asks for, renewed when the files change |

pub mod ciphers;
pub mod client;
pub mod files;
pub mod server;
