//! `GET /ui`: one page that shows the cluster and, to those who may, changes it. It is complete in itself: no other file,
//! no other host. Its files are in `ui/`; here they are put together.
//!
//! The page changes things through the same REST requests as everybody. A browser may be made to send such requests by
//! pages of others ([`foreign`]): those are refused, whatever credentials the browser adds.

use http::{HeaderMap, HeaderValue, header};

use super::reply::{self, Reply};

const PAGE: &str = include_str!("ui/index.html");
const STYLE: &str = include_str!("ui/style.css");
const SCRIPT: &str = include_str!("ui/app.js");

/// Nothing is loaded from anywhere, requests go to this member only, and nobody shows the page inside another.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page.
pub(super) fn page() -> Reply {
    let text = PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
    let mut reply = reply::html(text);
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        reply.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    reply
}

/// Whether a browser says that another site's page sends this request. Programs say nothing of the kind.
pub(super) fn foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        // `none`: typed by the person.
        return !matches!(site, "same-origin" | "none");
    }
    let Some(origin) = text("origin") else {
        return false;
    };
    let host = origin.split_once("://").map_or(origin, |(_, host)| host);
    text("host") != Some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_else() {
        let text = PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
        for outside in [
            "src=",
            "href=\"http",
            "@import",
            "url(",
            "innerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!text.contains(outside), "{outside}");
        }
        assert!(text.contains("<table id=\"members\">") && text.contains("forever(look, 1000)"));
    }

    #[test]
    fn pages_of_others_change_nothing() {
        let says = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            foreign(&headers)
        };
        assert!(!says(&[("host", "pg1:8008")]), "a program");
        assert!(!says(&[("host", "pg1:8008"), ("origin", "http://pg1:8008")]));
        assert!(!says(&[("host", "pg1:8008"), ("sec-fetch-site", "same-origin")]));
        assert!(says(&[("host", "pg1:8008"), ("origin", "http://evil.example")]));
        assert!(says(&[("host", "pg1:8008"), ("origin", "null")]));
        assert!(says(&[
            ("host", "pg1:8008"),
            ("sec-fetch-site", "cross-site"),
            ("origin", "http://pg1:8008")
        ]));
        assert!(says(&[("host", "pg1:8008"), ("sec-fetch-site", "same-site")]));
    }
}
