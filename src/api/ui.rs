//! `GET /ui`: one page that shows the cluster and, to those who may, changes it. It is complete in itself: no other file,
//! no other host. Its files are in `ui/`; here they are put together, once.
//!
//! The page changes things through the same REST requests as everybody. A browser may be made to send such requests by
//! pages of others ([`foreign`]): those are refused, whatever credentials the browser adds. The page itself keeps
//! credentials in its memory and never lets the browser have them. What concerns another member's server (restart,
//! reinitialize) is done on that member's own page: a member that passed such requests on would lend its address to
//! callers whom the other's allowlist does not know, and send their password wherever the DCS says.

use std::sync::LazyLock;

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};

use super::reply::{self, Reply};

const PAGE: &str = include_str!("ui/index.html");
const STYLE: &str = include_str!("ui/style.css");
/// One script, in this order.
const SCRIPTS: [&str; 7] = [
    include_str!("ui/tools.js"),
    include_str!("ui/members.js"),
    include_str!("ui/topology.js"),
    include_str!("ui/history.js"),
    include_str!("ui/config.js"),
    include_str!("ui/actions.js"),
    include_str!("ui/app.js"),
];

/// The page with the headers that depend on it.
struct Page {
    text: String,
    policy: String,
    etag: String,
}

static READY: LazyLock<Page> = LazyLock::new(|| {
    // In a scope of its own: a browser has names like these, too.
    let script = format!("\"use strict\";\n(() => {{\n{}}})();\n", SCRIPTS.concat());
    let text = PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", &script);
    // Nothing is loaded from anywhere, only our own style and script count, requests go to this member only, text never
    // becomes markup, and nobody shows the page inside another.
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(STYLE),
        hash(&script)
    );
    let etag = format!("\"{}\"", hash(&text));
    Page { text, policy, etag }
});

/// As a content security policy names what is inline.
fn hash(text: &str) -> String {
    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text));
    format!("sha256-{digest}")
}

/// The page, or 304 for whom has it already.
pub(super) fn page(asked: &HeaderMap) -> Reply {
    let page = &*READY;
    let known = asked.get(header::IF_NONE_MATCH);
    let mut reply = if known.is_some_and(|tag| tag.as_bytes() == page.etag.as_bytes()) {
        reply::bare(304)
    } else {
        reply::html(page.text.clone())
    };
    let mut put = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            reply.headers_mut().insert(name, value);
        }
    };
    put(header::CONTENT_SECURITY_POLICY, &page.policy);
    put(header::ETAG, &page.etag);
    put(header::CACHE_CONTROL, "no-cache");
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::X_FRAME_OPTIONS, "DENY");
    put(header::REFERRER_POLICY, "no-referrer");
    reply
}

/// Whether a browser says that another site's page sends this request. Programs say nothing of the kind.
///
/// `Sec-Fetch-Site` cannot be set by a page and is right behind a proxy, too, but browsers leave it out where there is no
/// TLS. `Origin` comes with everything that could change something; a proxy in between has to leave `Host` as it is.
pub(super) fn foreign(headers: &HeaderMap) -> bool {
    let sites = headers.get_all("sec-fetch-site");
    if sites.iter().next().is_some() {
        // `none`: typed by the person. `same-site` is another port or a sister host: somebody else.
        return sites
            .iter()
            .any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let ours = |origin: &HeaderValue| {
        let place = origin
            .to_str()
            .ok()
            .and_then(|text| text.split_once("://"))
            .map(|(_, place)| place);
        matches!((place, host), (Some(place), Some(host)) if place.eq_ignore_ascii_case(host))
    };
    !headers.get_all(header::ORIGIN).iter().all(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_else_and_makes_no_markup_of_text() {
        let page = &READY.text;
        for outside in ["src=", "href=\"http", "href='http", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for script in SCRIPTS {
            // The last three would end the element, or begin a comment in it.
            for risky in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                "</script",
                "<!--",
                "/*STYLE*/",
            ] {
                assert!(!script.contains(risky), "{risky}");
            }
        }
        assert!(!STYLE.contains("</style") && !STYLE.contains("/*SCRIPT*/"));
        assert!(!page.contains(" style=\""), "the policy would refuse it");
        assert!(!page.contains(" onclick=\""), "the policy would refuse it");
    }

    #[test]
    fn the_policy_allows_what_is_in_the_page_and_nothing_else() {
        let inside = |begin: &str, end: &str| {
            let (_, rest) = READY.text.split_once(begin).expect("there");
            rest.split_once(end).expect("ended").0.to_owned()
        };
        let policy = &READY.policy;
        for (directive, text) in [
            ("style-src", inside("<style>", "</style>")),
            ("script-src", inside("<script>", "</script>")),
        ] {
            assert!(
                policy.contains(&format!("{directive} '{}';", hash(&text))),
                "{policy}"
            );
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }

    #[test]
    fn who_has_the_page_is_not_sent_it_again() {
        let mut asked = HeaderMap::new();
        let first = page(&asked);
        assert_eq!(first.status(), 200);
        let etag = first.headers()[header::ETAG].clone();
        asked.insert(header::IF_NONE_MATCH, etag);
        let second = page(&asked);
        assert_eq!(second.status(), 304);
        assert_eq!(second.headers()[header::X_FRAME_OPTIONS], "DENY");
        asked.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"old\""));
        assert_eq!(page(&asked).status(), 200);
    }

    #[test]
    fn pages_of_others_change_nothing() {
        let says = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            foreign(&headers)
        };
        let host = ("host", "pg1:8008");
        assert!(!says(&[host]), "a program");
        assert!(!says(&[host, ("origin", "http://pg1:8008")]));
        assert!(!says(&[host, ("origin", "http://PG1:8008")]));
        assert!(!says(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(
            !says(&[
                host,
                ("sec-fetch-site", "same-origin"),
                ("origin", "https://ops.example")
            ]),
            "behind a proxy with TLS"
        );
        assert!(says(&[host, ("origin", "http://evil.example")]));
        assert!(
            says(&[host, ("origin", "http://pg1:8009")]),
            "another port is another site"
        );
        assert!(says(&[host, ("origin", "null")]));
        assert!(says(&[("origin", "http://pg1:8008")]), "no host to compare with");
        assert!(says(&[
            host,
            ("origin", "http://pg1:8008"),
            ("origin", "http://evil.example")
        ]));
        assert!(says(&[
            host,
            ("sec-fetch-site", "cross-site"),
            ("origin", "http://pg1:8008")
        ]));
        assert!(says(&[host, ("sec-fetch-site", "same-site")]));
        let mut odd = HeaderMap::new();
        odd.insert(header::HOST, HeaderValue::from_static("pg1:8008"));
        odd.insert(
            header::ORIGIN,
            HeaderValue::from_bytes(b"http://\xff").expect("allowed"),
        );
        assert!(foreign(&odd), "what cannot be read is not ours");
    }
}
