use super::*;
use crate::tls::client::Check;

fn etcd(vars: &[(&str, &str)]) -> Etcd3 {
    match good(vars).config.dcs {
        DcsConfig::Etcd3(etcd) => etcd,
        other => unreachable!("{vars:?} name an etcd, not {other:?}"),
    }
}

fn embedded(vars: &[(&str, &str)]) -> Embedded {
    match good(vars).config.dcs {
        DcsConfig::Embedded(embedded) => embedded,
        other => unreachable!("{vars:?} name no store, not {other:?}"),
    }
}

#[test]
fn endpoints_are_read_in_every_spelling() {
    for (name, value, expected) in [
        (
            "HOWDAH_ETCD3_HOSTS",
            "e1:2379,e2",
            &["http://e1:2379", "http://e2:2379"][..],
        ),
        (
            "PATRONI_ETCD3_HOSTS",
            "'e1:1','e2:2'",
            &["http://e1:1", "http://e2:2"],
        ),
        (
            "PATRONI_ETCD_HOSTS",
            "[e1, e2:2]",
            &["http://e1:2379", "http://e2:2"],
        ),
        ("ETCD3_HOSTS", "- e1\n- e2", &["http://e1:2379", "http://e2:2379"]),
        ("PATRONI_ETCD_HOST", "e1", &["http://e1:2379"]),
        ("HOWDAH_ETCD3_URL", "https://e1:2379/", &["https://e1:2379"]),
        (
            "HOWDAH_ETCD3_HOSTS",
            "[::1]:2379,[::2]",
            &["http://[::1]:2379", "http://[::2]:2379"],
        ),
        (
            "HOWDAH_CONFIGURATION",
            "etcd3: {hosts: 'e1,e2:3'}",
            &["http://e1:2379", "http://e2:3"],
        ),
        ("HOWDAH_CONFIGURATION", "etcd: {host: e1}", &["http://e1:2379"]),
    ] {
        assert_eq!(etcd(&[(name, value)]).endpoints, expected, "{name}={value}");
    }
}

#[test]
fn credentials_in_a_url_are_taken_out_of_it() {
    for (name, value) in [
        ("HOWDAH_ETCD3_URL", "http://root:s3cret%40@e1:2379"),
        ("HOWDAH_ETCD3_PROXY", "http://root:s3cret@@e1:2379"),
        (
            "HOWDAH_ETCD3_HOSTS",
            "root:s3cret%40@e1:2379,http://root:s3cret%40@e2:2379,e3",
        ),
    ] {
        let loaded = good(&[(name, value)]);
        let text = format!("{} {:?}", check::render(&loaded), loaded.config);
        assert!(
            !text.contains("s3cret") && text.contains("http://e1:2379"),
            "{text}"
        );
        let DcsConfig::Etcd3(etcd) = loaded.config.dcs else {
            unreachable!("{name} names an etcd");
        };
        let credentials = etcd.credentials.expect("given");
        assert_eq!(
            (credentials.username.as_str(), credentials.password.reveal()),
            ("root", "s3cret@")
        );
    }
    refused(
        &[
            ("HOWDAH_ETCD3_URL", "https://root:s3cret@e1:2379"),
            ("HOWDAH_ETCD3_USERNAME", "root"),
            ("HOWDAH_ETCD3_PASSWORD", "other"),
        ],
        "HOWDAH_ETCD3_URL, HOWDAH_ETCD3_PASSWORD: the URL and this setting, or two URLs, name different credentials",
    );
    let mistakes = bad(&[("HOWDAH_ETCD3_URL", "ftp://root:s3cret@e1:2379")]).join(" ");
    assert!(!mistakes.contains("s3cret"), "{mistakes}");
}

#[test]
fn certificates_mean_https() {
    let etcd = etcd(&[
        ("HOWDAH_ETCD3_HOSTS", "e1"),
        ("HOWDAH_ETCD3_CACERT", "/ca"),
        ("HOWDAH_ETCD3_CERT", "/c"),
        ("HOWDAH_ETCD3_KEY", "/k"),
        ("HOWDAH_ETCD3_USERNAME", "u"),
        ("HOWDAH_ETCD3_PASSWORD", "p"),
    ]);
    assert!(etcd.tls());
    assert_eq!(etcd.endpoints, ["https://e1:2379"]);
    assert_eq!(etcd.client_certificate, Some(("/c".into(), "/k".into())));
    assert_eq!(etcd.credentials.map(|c| c.username).as_deref(), Some("u"));
}

#[test]
fn half_of_an_etcd_configuration_is_a_mistake() {
    let hosts = ("HOWDAH_ETCD3_HOSTS", "e1");
    refused(
        &[hosts, ("HOWDAH_ETCD3_CERT", "/c")],
        "HOWDAH_ETCD3_KEY must be set: a client certificate is given",
    );
    refused(
        &[hosts, ("HOWDAH_ETCD3_USERNAME", "u")],
        "HOWDAH_ETCD3_PASSWORD must be set: HOWDAH_ETCD3_USERNAME is given",
    );
    refused(
        &[
            hosts,
            ("HOWDAH_ETCD3_CACERT", "/c"),
            ("HOWDAH_ETCD3_PROTOCOL", "http"),
        ],
        "HOWDAH_ETCD3_PROTOCOL: certificates need https",
    );
    refused(
        &[("HOWDAH_ETCD3_USERNAME", "u")],
        "HOWDAH_ETCD3_USERNAME: without an endpoint this has no effect; set HOWDAH_ETCD3_HOSTS",
    );
    refused(
        &[hosts, ("HOWDAH_EMBEDDED_PEERS", "pg1")],
        "HOWDAH_ETCD3_HOSTS, HOWDAH_EMBEDDED_PEERS: an external etcd and the embedded etcd as the store exclude each other",
    );
    refused(
        &[("HOWDAH_ETCD3_HOSTS", "ftp://e")],
        "HOWDAH_ETCD3_HOSTS: \"ftp://e\" is not an endpoint (allowed: host:port, http://host:port, https://host:port)",
    );
}

#[test]
fn peers_are_names_with_places_if_need_be() {
    let embedded = embedded(&[("HOWDAH_EMBEDDED_PEERS", "pg1,pg2=10.0.0.2, pg3=[::3]:12380/12379")]);
    let urls: Vec<String> = embedded
        .peers
        .iter()
        .map(|p| format!("{} {} {}", p.name, p.peer_url(), p.client_url()))
        .collect();
    assert_eq!(
        urls,
        [
            "pg1 http://pg1:2380 http://pg1:2379",
            "pg2 http://10.0.0.2:2380 http://10.0.0.2:2379",
            "pg3 http://[::3]:12380 http://[::3]:12379",
        ]
    );
    assert_eq!(embedded.this, embedded.peers[0]);
    assert_eq!(embedded.listen, "0.0.0.0");
}

#[test]
fn three_members_on_one_host_take_their_ports_from_the_list() {
    let peers = "a=127.0.0.1:1/2,b=127.0.0.1:3/4,c=127.0.0.1:5/6";
    let own = embedded(&[("HOWDAH_NAME", "b"), ("HOWDAH_EMBEDDED_PEERS", peers)]).this;
    assert_eq!((own.peer_port, own.client_port), (3, 4));
    refused(
        &[
            ("HOWDAH_NAME", "b"),
            ("HOWDAH_EMBEDDED_PEERS", peers),
            ("HOWDAH_EMBEDDED_PEER_PORT", "9"),
        ],
        "HOWDAH_EMBEDDED_PEER_PORT, HOWDAH_EMBEDDED_PEERS: 9 and 3 are both this member's port",
    );
}

#[test]
fn wrong_peers_are_refused() {
    refused(
        &[("HOWDAH_EMBEDDED_PEERS", "a,b,c")],
        "HOWDAH_EMBEDDED_PEERS: this member, pg1 (HOWDAH_NAME), is not among a, b, c",
    );
    refused(
        &[("HOWDAH_EMBEDDED_PEERS", "pg1,pg1,b,c")],
        "HOWDAH_EMBEDDED_PEERS: pg1 is there twice",
    );
    refused(
        &[("HOWDAH_EMBEDDED_PEERS", "pg1,b=:1,c,d")],
        "HOWDAH_EMBEDDED_PEERS: \"b=:1\" is not a peer (allowed: name, name=host, name=host:peerport, name=host:peerport/clientport)",
    );
    refused(
        &[("HOWDAH_EMBEDDED_DATA_DIR", "/var/lib/postgresql/data/etcd")],
        "HOWDAH_EMBEDDED_DATA_DIR, HOWDAH_POSTGRESQL_DATA_DIR: one is inside the other; they must be apart",
    );
    assert_eq!(good(&[("HOWDAH_EMBEDDED_PEERS", "pg1,pg2")]).warnings.len(), 1);
}

fn kubernetes(vars: &[(&str, &str)]) -> Kubernetes {
    match good(vars).config.dcs {
        DcsConfig::Kubernetes(kubernetes) => *kubernetes,
        other => unreachable!("{vars:?} ask for Kubernetes, not {other:?}"),
    }
}

#[test]
fn kubernetes_is_chosen_by_any_of_its_settings_in_patronis_way() {
    let found = kubernetes(&[
        ("PATRONI_KUBERNETES_LABELS", "{application: patroni, cluster: x}"),
        ("PATRONI_KUBERNETES_USE_ENDPOINTS", "true"),
        ("PATRONI_KUBERNETES_POD_IP", "10.0.0.7"),
        (
            "PATRONI_KUBERNETES_PORTS",
            "[{name: postgresql, port: 5432}, {name: api, port: '8008'}]",
        ),
        ("PATRONI_KUBERNETES_RETRIABLE_HTTP_CODES", "[408, '425']"),
    ]);
    assert_eq!(found.mode, KubernetesMode::Endpoints);
    assert_eq!(found.labels["application"], "patroni");
    assert_eq!(
        (found.scope_label.as_str(), found.role_label.as_str()),
        ("cluster-name", "role")
    );
    assert_eq!(
        (
            found.leader_label_value.as_str(),
            found.follower_label_value.as_str()
        ),
        ("primary", "replica")
    );
    assert_eq!(
        found.ports.iter().map(|port| port.port).collect::<Vec<_>>(),
        [5432, 8008]
    );
    assert_eq!(found.retriable_http_codes, [408, 425]);
    assert!(!found.bypass_api_service);
    let found = kubernetes(&[(
        "HOWDAH_CONFIGURATION",
        "kubernetes: {namespace: prod, labels: {a: b}, ports: [{port: 5433}]}",
    )]);
    assert_eq!(
        (found.mode, found.namespace.as_deref()),
        (KubernetesMode::ConfigMaps, Some("prod"))
    );
    assert_eq!(found.ports[0].port, 5433);
    assert_eq!(
        kubernetes(&[("HOWDAH_KUBERNETES_MODE", "leases")]).mode,
        KubernetesMode::Leases
    );
    assert_eq!(
        kubernetes(&[("HOWDAH_KUBERNETES_ENABLED", "yes")]).ports[0].port,
        5432
    );
}

#[test]
fn spilos_names_choose_kubernetes_only_where_spilo_would() {
    let operator = [
        ("POD_IP", "10.0.0.7"),
        ("POD_NAMESPACE", "prod"),
        ("KUBERNETES_SCOPE_LABEL", "cluster-name"),
        ("KUBERNETES_ROLE_LABEL", "spilo-role"),
        ("KUBERNETES_LABELS", r#"{"application":"spilo"}"#),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&operator[..], more].concat();
    assert!(matches!(
        good(&with(&[("ETCD_HOST", "e1:2379")])).config.dcs,
        DcsConfig::Etcd3(_)
    ));
    assert!(matches!(good(&operator).config.dcs, DcsConfig::Embedded(_)));
    let found = kubernetes(&with(&[("DCS_ENABLE_KUBERNETES_API", "true")]));
    assert_eq!(found.mode, KubernetesMode::Endpoints);
    assert_eq!(
        (found.scope_label.as_str(), found.leader_label_value.as_str()),
        ("cluster-name", "master")
    );
    assert_eq!(
        (found.namespace.as_deref(), found.pod_ip.as_deref()),
        (Some("prod"), Some("10.0.0.7"))
    );
    assert_eq!(found.ports[0].name.as_deref(), Some("postgresql"));
    assert!(found.bypass_api_service);
    let maps = with(&[
        ("DCS_ENABLE_KUBERNETES_API", "true"),
        ("KUBERNETES_USE_CONFIGMAPS", "true"),
    ]);
    assert_eq!(kubernetes(&maps).mode, KubernetesMode::ConfigMaps);
}

#[test]
fn what_does_not_fit_kubernetes_is_said() {
    refused(
        &[
            ("HOWDAH_KUBERNETES_LABELS", "{a: b}"),
            ("HOWDAH_ETCD3_HOSTS", "e1"),
        ],
        "HOWDAH_KUBERNETES_LABELS, HOWDAH_ETCD3_HOSTS: Kubernetes and an external etcd as the store exclude each other",
    );
    refused(
        &[
            ("HOWDAH_KUBERNETES_MODE", "leases"),
            ("HOWDAH_KUBERNETES_USE_ENDPOINTS", "on"),
        ],
        "HOWDAH_KUBERNETES_MODE, HOWDAH_KUBERNETES_USE_ENDPOINTS: the one says this and the other says that",
    );
    refused(
        &[("HOWDAH_KUBERNETES_LABELS", "{a: 'b c'}")],
        "HOWDAH_KUBERNETES_LABELS: a: \"b c\" is no label (allowed: letters, digits, -, _ and ., up to 63)",
    );
    refused(
        &[("HOWDAH_KUBERNETES_PORTS", "[{port: 5432}, {port: 8008}]")],
        "HOWDAH_KUBERNETES_PORTS: where there are several ports, each needs a name",
    );
    refused(
        &[("HOWDAH_KUBERNETES_RETRIABLE_HTTP_CODES", "[200]")],
        "HOWDAH_KUBERNETES_RETRIABLE_HTTP_CODES: \"200\" is no HTTP status that says no (allowed: 300 to 599)",
    );
}

#[test]
fn consul_is_asked_where_patroni_would_ask_it() {
    let consul = |vars: &[(&str, &str)]| match good(vars).config.dcs {
        DcsConfig::Consul(consul) => consul,
        other => unreachable!("{vars:?} name Consul, not {other:?}"),
    };
    let host = |vars: &[(&str, &str)]| consul(vars).host;
    assert_eq!(host(&[("PATRONI_CONSUL_HOST", "c1")]), "c1:8500");
    assert_eq!(host(&[("CONSUL_HOST", "c1:8501")]), "c1:8501");
    assert_eq!(
        host(&[("HOWDAH_CONSUL_HOST", "c1"), ("HOWDAH_CONSUL_PORT", "9")]),
        "c1:9"
    );
    assert_eq!(host(&[("HOWDAH_CONSUL_TOKEN", "t")]), "127.0.0.1:8500");
    let found = consul(&[
        ("HOWDAH_CONSUL_URL", "https://c1/"),
        ("HOWDAH_CONSUL_VERIFY", "no"),
        ("HOWDAH_CONSUL_CERT", "/c.pem"),
        ("HOWDAH_CONSUL_TOKEN", "s3cret"),
        ("HOWDAH_CONSUL_REGISTER_SERVICE", "on"),
        ("HOWDAH_CONSUL_SERVICE_TAGS", "a,b"),
    ]);
    assert_eq!(found.host, "c1:8500");
    let tls = found.tls.clone().expect("https");
    assert_eq!(tls.check, Check::Nothing);
    let identity = tls.identity.expect("a certificate");
    assert_eq!((identity.cert, identity.key), ("/c.pem".into(), "/c.pem".into()));
    assert_eq!(found.service.clone().expect("registered").tags, ["a", "b"]);
    assert!(found.consistent && !format!("{found:?}").contains("s3cret"));
    let stale = good(&[
        ("PATRONI_CONSUL_HOST", "c1"),
        ("PATRONI_CONSUL_CONSISTENCY", "stale"),
    ]);
    assert_eq!(
        stale.warnings,
        [
            "PATRONI_CONSUL_CONSISTENCY: whoever may lead is not decided by stale reads; default is used instead"
        ]
    );
    // What Kubernetes and Consul's own tools leave in the environment chooses nothing.
    let others = [("CONSUL_PORT", "tcp://10.0.0.1:8500"), ("CONSUL_CACERT", "/ca")];
    assert!(matches!(good(&others).config.dcs, DcsConfig::Embedded(_)));
}

#[test]
fn zookeeper_is_given_as_patroni_has_it() {
    let loaded = good(&[
        ("PATRONI_ZOOKEEPER_HOSTS", "'z1:2182','z2/some/root'"),
        ("PATRONI_ZOOKEEPER_AUTH_DATA", "{digest: 'pg:s3cret'}"),
        (
            "PATRONI_ZOOKEEPER_SET_ACLS",
            "{'CN=pg': [ALL], 'digest:pg:hash': [read, write]}",
        ),
    ]);
    assert!(!check::render(&loaded).contains("s3cret"));
    let DcsConfig::ZooKeeper(found) = loaded.config.dcs else {
        unreachable!("ZooKeeper is named");
    };
    assert_eq!(found.hosts, ["z1:2182", "z2:2181"]);
    assert_eq!(found.chroot, "/some/root");
    assert_eq!(found.tls, None);
    assert_eq!(
        found.acls,
        [
            ("x509".to_owned(), "CN=pg".to_owned(), 31),
            ("digest".to_owned(), "pg:hash".to_owned(), 3)
        ]
    );
    assert_eq!(found.auth[0].1.reveal(), "pg:s3cret");
    assert!(!format!("{found:?}").contains("s3cret"));
}

#[test]
fn two_stores_are_one_too_many() {
    refused(
        &[("HOWDAH_CONSUL_HOST", "c1"), ("PATRONI_ZOOKEEPER_HOSTS", "z1")],
        "HOWDAH_CONSUL_HOST, PATRONI_ZOOKEEPER_HOSTS: Consul and ZooKeeper as the store exclude each other",
    );
    refused(
        &[("CONSUL_HOST", "c1"), ("HOWDAH_ETCD3_HOSTS", "e1")],
        "CONSUL_HOST, HOWDAH_ETCD3_HOSTS: Consul and an external etcd as the store exclude each other",
    );
}

#[test]
fn what_does_not_fit_consul_or_zookeeper_is_said() {
    refused(
        &[("HOWDAH_CONSUL_HOST", "c1:8501"), ("HOWDAH_CONSUL_PORT", "8502")],
        "HOWDAH_CONSUL_HOST, HOWDAH_CONSUL_PORT: they name two ports",
    );
    refused(
        &[("HOWDAH_CONSUL_URL", "c1:8500")],
        "HOWDAH_CONSUL_URL: it must begin with http:// or https://",
    );
    refused(
        &[
            ("HOWDAH_CONSUL_HOST", "c1"),
            ("HOWDAH_CONSUL_SERVICE_CHECK_INTERVAL", "5"),
        ],
        "HOWDAH_CONSUL_SERVICE_CHECK_INTERVAL: \"5\" is no time between two checks (allowed: 5s, 500ms, 1m)",
    );
    refused(
        &[("HOWDAH_ZOOKEEPER_SET_ACLS", "{a: [ALL]}")],
        "HOWDAH_ZOOKEEPER_HOSTS must be set: ZooKeeper is to be the store",
    );
    refused(
        &[
            ("HOWDAH_ZOOKEEPER_HOSTS", "z1"),
            ("HOWDAH_ZOOKEEPER_SET_ACLS", "{a: [FLY]}"),
        ],
        "HOWDAH_ZOOKEEPER_SET_ACLS: a: [\"FLY\"] is no list of permissions (allowed: CREATE, READ, WRITE, DELETE, ADMIN, ALL)",
    );
}

#[test]
fn a_voter_needs_peers_and_no_password() {
    let peers = ("HOWDAH_EMBEDDED_PEERS", "pg1,pg2,pg3");
    let env = MapEnv::new(&[("HOWDAH_NAME", "pg1"), ("HOWDAH_ROLE", "voter"), peers]);
    let loaded = Config::load(&env, &host()).expect("no mistakes");
    assert_eq!(loaded.config.role, MemberRole::Voter);
    refused(
        &[("HOWDAH_ROLE", "voter")],
        "HOWDAH_ROLE: a voter is one of several members with the image's etcd; HOWDAH_EMBEDDED_PEERS names them all, this one too",
    );
}
