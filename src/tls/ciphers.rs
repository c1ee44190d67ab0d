//! OpenSSL's cipher strings, as far as this TLS has them: it has none that is weak.
//!
//! As with OpenSSL (`ciphers(1)`), a string chooses among the suites of TLS 1.2; those of 1.3 are always there. Names it does
//! not know choose nothing, so that a string like `HIGH:!aNULL:!MD5` means what it meant.

use tokio_rustls::rustls::{CipherSuite, SupportedCipherSuite, crypto::ring::ALL_CIPHER_SUITES};

/// Every suite of TLS 1.2 there is, its name, and the words that choose it.
const SUITES: [(CipherSuite, &str, &[&str]); 6] = [
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        &["ECDSA", "AES", "AESGCM", "AES256", "SHA384"],
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        &["ECDSA", "CHACHA20"],
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        &["ECDSA", "AES", "AESGCM", "AES128", "SHA256"],
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        "ECDHE-RSA-AES256-GCM-SHA384",
        &["RSA", "AES", "AESGCM", "AES256", "SHA384"],
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "ECDHE-RSA-CHACHA20-POLY1305",
        &["RSA", "CHACHA20"],
    ),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        "ECDHE-RSA-AES128-GCM-SHA256",
        &["RSA", "AES", "AESGCM", "AES128", "SHA256"],
    ),
];

/// Words that choose every suite.
const ALL: [&str; 10] = [
    "ALL", "DEFAULT", "HIGH", "ECDHE", "EECDH", "KECDHE", "KEECDH", "TLSV1.2", "AEAD", "STRONG",
];

/// The suites that a cipher string chooses, the string's first choice first.
///
/// # Errors
/// It chooses none of TLS 1.2.
pub fn chosen(string: &str) -> Result<Vec<SupportedCipherSuite>, String> {
    let mut chosen: Vec<CipherSuite> = Vec::new();
    let mut never: Vec<CipherSuite> = Vec::new();
    let words = string.split([':', ',', ' ', ';']).filter(|word| !word.is_empty());
    for word in words {
        // @STRENGTH and @SECLEVEL=n: nothing here is weaker than they ask for.
        if word.starts_with('@') {
            continue;
        }
        let names = word.trim_start_matches(['!', '-', '+']);
        let sign = word.chars().next().filter(|first| "!-+".contains(*first));
        let meant: Vec<CipherSuite> = SUITES
            .iter()
            .filter(|(_, name, words)| means(names, name, words))
            .map(|suite| suite.0)
            .collect();
        match sign {
            Some('!') => never.extend(&meant),
            Some('-') => chosen.retain(|suite| !meant.contains(suite)),
            // Only moved to the end.
            Some(_) => chosen.sort_by_key(|suite| meant.contains(suite)),
            None => chosen.extend(
                meant
                    .into_iter()
                    .filter(|suite| !chosen.contains(suite))
                    .collect::<Vec<_>>(),
            ),
        }
    }
    chosen.retain(|suite| !never.contains(suite));
    if chosen.is_empty() {
        let names = SUITES.map(|suite| suite.1).join(", ");
        return Err(format!("{string:?} chooses no cipher (there are: {names})"));
    }
    let newer = ALL_CIPHER_SUITES.iter().filter(|suite| suite.tls13().is_some());
    let older = chosen
        .iter()
        .filter_map(|wanted| ALL_CIPHER_SUITES.iter().find(|suite| suite.suite() == *wanted));
    Ok(newer.chain(older).copied().collect())
}

/// Whether one element of the string, without its sign, means this suite: its name, or words joined by +, all of which it has.
fn means(element: &str, name: &str, words: &[&str]) -> bool {
    element.eq_ignore_ascii_case(name)
        || element.split('+').all(|part| {
            let part = part.to_ascii_uppercase();
            let has = |word: &str| words.contains(&word);
            // Authentication may be named as such.
            ALL.contains(&&*part) || has(&part) || part.strip_prefix('A').is_some_and(has)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(string: &str) -> Vec<&'static str> {
        let suites = chosen(string).expect("some");
        let old = suites.iter().filter(|suite| suite.tls13().is_none());
        old.filter_map(|suite| Some(SUITES.iter().find(|known| known.0 == suite.suite())?.1))
            .collect()
    }

    #[test]
    fn strings_of_openssl_mean_what_they_meant() {
        assert_eq!(
            names("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"),
            ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384"]
        );
        assert_eq!(
            names("ALL:!SSLv1:!SSLv2:!SSLv3:!TLSv1:!TLSv1.1").len(),
            6,
            "the string in Patroni's documentation"
        );
        assert_eq!(names("HIGH:!aNULL:!MD5:@STRENGTH").len(), 6);
        assert_eq!(
            names("EECDH+AESGCM:!ECDSA:!AES128"),
            ["ECDHE-RSA-AES256-GCM-SHA384"]
        );
        assert_eq!(
            names("aRSA:-CHACHA20:+AES256"),
            ["ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384"]
        );
        assert_eq!(
            names("!AES:ALL").len(),
            2,
            "what is struck out does not come back"
        );
    }

    #[test]
    fn those_of_tls_1_3_are_always_there() {
        let suites = chosen("ECDHE-RSA-AES256-GCM-SHA384").expect("one");
        assert_eq!(suites.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
    }

    #[test]
    fn a_string_that_chooses_nothing_is_refused() {
        for wrong in ["", "RC4", "ALL:!ALL", "AES256-SHA", "é:!ü", "!"] {
            let error = chosen(wrong).expect_err("none");
            assert!(error.contains("chooses no cipher"), "{wrong}: {error}");
        }
    }
}
