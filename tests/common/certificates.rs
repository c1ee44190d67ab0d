//! An authority of our own, and what it signs: `ca.crt`, and `server` and `client` with `.crt`, `.key` and, both in one
//! file, `.pem`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

fn openssl(dir: &Path, args: &str) {
    let output = std::process::Command::new("openssl")
        .args(args.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "openssl {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub(crate) fn certificates(dir: &Path) {
    openssl(
        dir,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca",
    );
    for name in ["server", "client"] {
        std::fs::write(
            dir.join("ext"),
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n",
        )
        .unwrap();
        openssl(
            dir,
            &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile ext"
            ),
        );
        let read = |end: &str| std::fs::read_to_string(dir.join(format!("{name}.{end}"))).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), read("key") + &read("crt")).unwrap();
    }
}
