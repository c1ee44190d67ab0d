//! TLS of the REST API and towards it.

use super::*;
use crate::tls::server::VerifyClient;

#[test]
fn a_certificate_makes_it_https_and_the_rest_follows() {
    let loaded = good(&[
        ("PATRONI_RESTAPI_CERTFILE", "/server.pem"),
        ("PATRONI_RESTAPI_CAFILE", "/ca.crt"),
        ("PATRONI_RESTAPI_VERIFY_CLIENT", "optional"),
        (
            "PATRONI_RESTAPI_CIPHERS",
            "ALL:!SSLv1:!SSLv2:!SSLv3:!TLSv1:!TLSv1.1",
        ),
        ("PATRONI_RESTAPI_KEYFILE_PASSWORD", "opensesame"),
        ("PATRONI_RESTAPI_HTTP_EXTRA_HEADERS", "{A: 1, B: 1}"),
        ("PATRONI_RESTAPI_HTTPS_EXTRA_HEADERS", "{B: 2}"),
        ("PATRONI_CTL_CERTFILE", "/client.crt"),
        ("PATRONI_CTL_KEYFILE", "/client.key"),
    ]);
    let restapi = &loaded.config.restapi;
    let tls = restapi.tls.as_ref().expect("TLS");
    assert_eq!(restapi.scheme(), "https");
    assert_eq!(
        tls.identity.key,
        std::path::Path::new("/server.pem"),
        "the key is in the same file"
    );
    assert_eq!(tls.verify_client, VerifyClient::Optional);
    assert_eq!(restapi.extra_headers["A"], "1");
    assert_eq!(restapi.extra_headers["B"], "2", "those for TLS are stronger");
    let ctl = &loaded.config.ctl;
    assert_eq!(
        ctl.cacert.as_deref(),
        Some(std::path::Path::new("/ca.crt")),
        "those of the REST API"
    );
    assert_eq!(
        ctl.identity.as_ref().expect("one").key,
        std::path::Path::new("/client.key")
    );
    assert!(!format!("{loaded:?}").contains("opensesame"));
}

#[test]
fn without_a_certificate_there_is_no_tls_and_headers_for_it_are_not_sent() {
    let loaded = good(&[
        ("HOWDAH_RESTAPI_HTTPS_EXTRA_HEADERS", "{B: 2}"),
        ("HOWDAH_RESTAPI_CAFILE", "/ca.crt"),
    ]);
    let restapi = &loaded.config.restapi;
    assert_eq!((restapi.scheme(), restapi.tls.is_some()), ("http", false));
    assert!(restapi.extra_headers.is_empty());
}

#[test]
fn what_cannot_work_together_is_named() {
    for (vars, expected) in [
        (&[("HOWDAH_RESTAPI_KEYFILE", "/k")][..], "HOWDAH_RESTAPI_CERTFILE"),
        (
            &[("HOWDAH_RESTAPI_VERIFY_CLIENT", "required")],
            "HOWDAH_RESTAPI_CERTFILE",
        ),
        (&[("HOWDAH_RESTAPI_CIPHERS", "HIGH")], "HOWDAH_RESTAPI_CERTFILE"),
        (&[("HOWDAH_CTL_KEYFILE", "/k")], "HOWDAH_CTL_CERTFILE"),
        (
            &[
                ("HOWDAH_RESTAPI_CERTFILE", "/c"),
                ("HOWDAH_RESTAPI_VERIFY_CLIENT", "required"),
            ],
            "HOWDAH_RESTAPI_CAFILE",
        ),
        (
            &[
                ("HOWDAH_RESTAPI_CERTFILE", "/c"),
                ("HOWDAH_RESTAPI_CIPHERS", "RC4-SHA"),
            ],
            "HOWDAH_RESTAPI_CIPHERS: \"RC4-SHA\" chooses no cipher (there are: ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
        (
            &[
                ("HOWDAH_RESTAPI_CERTFILE", "/c"),
                ("HOWDAH_RESTAPI_VERIFY_CLIENT", "maybe"),
            ],
            "HOWDAH_RESTAPI_VERIFY_CLIENT",
        ),
    ] {
        let mistakes = bad(vars);
        assert!(
            mistakes.len() == 1 && mistakes[0].starts_with(expected),
            "{vars:?}: {mistakes:?}"
        );
    }
}
