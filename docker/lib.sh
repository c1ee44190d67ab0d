# Shared by docker/, compose/ and tests/: talking to the person in front, packages, and a Docker engine.
# Sourced, never run. Works with bash 3.2 (macOS); whatever installs something is for Debian and root only.
# shellcheck shell=bash

# Where rustup puts the toolchain; scripts started by a service often lack it in their path.
[ ! -d "${HOME:-/root}/.cargo/bin" ] || PATH=$PATH:${HOME:-/root}/.cargo/bin

# One line about what is going on; stderr, so that a script's own output stays usable.
say() { printf '==> %s\n' "$*" >&2; }

# The one clear message before giving up.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# have PROGRAM: is it in the path?
have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" = 0 ]; }

# bounded SECONDS COMMAND...: runs the command with a time limit, where the system has a tool for that.
bounded() {
    local seconds=$1
    shift
    if have timeout; then timeout --kill-after=5 "$seconds" "$@"; else "$@"; fi
}

# quietly COMMAND...: shows the command's output only when it fails.
quietly() {
    local log
    log=$(mktemp)
    if "$@" </dev/null >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    printf 'error: this failed: %s\n' "$*" >&2
    tail -n 40 "$log" >&2
    rm -f "$log"
    return 1
}

# ---------------------------------------------------------------------------------------------- packages

can_install() { is_root && have apt-get; }

# apt_missing PACKAGE...: prints those that are not installed.
apt_missing() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || printf '%s ' "$package"
    done
}

# Package lists are read once per script run, and only when something is to be installed.
apt_lists_are_fresh=no
apt_update_once() {
    [ "$apt_lists_are_fresh" = no ] || return 0
    # One dead third-party source is no reason to stop: the install that follows tells whether it matters.
    one_at_a_time quietly apt-get update || true
    apt_lists_are_fresh=yes
}

# apt_install PACKAGE...: installs what is missing. Fails without trying when that is not possible here.
apt_install() {
    local missing
    have dpkg-query || return 1
    missing=$(apt_missing "$@")
    [ -n "$missing" ] || return 0
    can_install || return 1
    say "installing by apt: ${missing% }"
    apt_update_once
    # shellcheck disable=SC2086 # a list of names on purpose
    DEBIAN_FRONTEND=noninteractive one_at_a_time quietly \
        apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends $missing
}

# one_at_a_time COMMAND...: apt refuses to work beside another apt, and two of our scripts may run at once.
one_at_a_time() {
    local status=0
    exec 8>/run/howdah-apt.lock
    flock 8
    "$@" 8>&- || status=$?
    exec 8>&-
    return "$status"
}

# apt_offers PACKAGE: do this machine's own sources have it?
apt_offers() {
    apt_update_once && apt-cache policy "$1" 2>/dev/null | grep 'Candidate:' | grep -qv '(none)'
}

# debian_site packages|security: where this machine's own apt gets Debian's packages from, else the public host.
# A machine behind a mirror often reaches nothing else.
debian_site() {
    local site='' label=Debian path=debian
    if [ "$1" = security ]; then label=Debian-Security path=debian-security; fi
    if have apt-get; then
        # Who made a source is known once its list was read; before that, its path has to do.
        # shellcheck disable=SC2016 # apt replaces $(SITE)
        site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' "Label: $label" 2>/dev/null || true)
        [ -n "$site" ] || site=$(apt_sources | grep "/$path\$" || true)
    fi
    site=$(printf '%s\n' "$site" | head -n 1)
    printf '%s\n' "${site:-http://deb.debian.org/$path}"
}

# The addresses of all sources that apt is configured with, whether it has been there already or not.
apt_sources() { apt-get update --print-uris 2>/dev/null | sed -n "s|^'\(.*[^/]\)/*/dists/.*|\1|p" || true; }

# debian_download SUITE FOLDER PACKAGE...: fetches .debs of another Debian without adding that suite to the system:
# apt gets a source list, list folder and cache of its own for this one call.
debian_download() {
    local suite=$1 folder=$2 options
    shift 2
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    # apt downloads as user _apt; without access it only complains, so let it in.
    chmod 755 "$folder"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$(debian_site packages)" "$suite" \
        >"$folder/suite.list"
    options="-o Dir::Etc::SourceList=$folder/suite.list -o Dir::Etc::SourceParts=/dev/null
             -o Dir::State::Lists=$folder/lists -o Dir::Cache=$folder/cache"
    # shellcheck disable=SC2086 # options are words on purpose
    (cd "$folder" && quietly apt-get $options update && quietly apt-get $options download "$@")
}

# ------------------------------------------------------------------------------------------ compiling here

# What `cargo build` needs besides cargo. Says what is missing and fails when it cannot be installed.
ensure_build_tools() {
    have cargo || { say 'there is no Rust toolchain here (https://rustup.rs)'; return 1; }
    rust_is_new_enough || { say "this machine's Rust is older than Cargo.toml asks for: rustup update"; return 1; }
    have cc || apt_install gcc libc6-dev || { say 'a C compiler is missing: rustc links with it'; return 1; }
    protoc_works || apt_install protobuf-compiler libprotobuf-dev \
        || { say "protoc with its standard imports is missing (Debian: protobuf-compiler, libprotobuf-dev): etcd's protocol is compiled with it"; return 1; }
}

rust_is_new_enough() {
    local minor='s/^[^0-9]*1\.\([0-9]*\).*/\1/p' wanted found
    wanted=$(grep '^rust-version' Cargo.toml | sed -n "$minor")
    found=$(rustc --version | sed -n "$minor" | head -n 1)
    [ "${found:-0}" -ge "${wanted:-0}" ]
}

# The program alone is not enough: etcd's protocol imports what Debian puts into a package of its own.
protoc_works() {
    local folder status=0
    have protoc || return 1
    folder=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\nmessage Probe { google.protobuf.FieldOptions options = 1; }\n' \
        >"$folder/probe.proto"
    protoc --proto_path="$folder" --descriptor_set_out="$folder/out" "$folder/probe.proto" >/dev/null 2>&1 || status=1
    rm -rf "$folder"
    return "$status"
}

# ------------------------------------------------------------------------------------------ Docker engine

DOCKERD_LOG=/var/log/dockerd.log
DOCKER_HELP='install Docker Engine with its buildx and compose plugins (https://docs.docker.com/engine/install/), start it, and run this again'

engine_answers() { bounded 20 docker info >/dev/null 2>&1; }
plugins_answer() { docker buildx version >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }

# Makes `docker build`, `docker run` and `docker compose` usable, installing and starting what is missing,
# or ends the script with one message before anything was changed.
ensure_engine() {
    if have docker && engine_answers; then
        plugins_answer || install_plugins
        return 0
    fi
    refuse_hopeless
    if ! have docker || ! have dockerd; then install_engine; fi
    plugins_answer || install_plugins
    start_engine
}

# Everything that can be known to fail is asked before the first change to the machine.
refuse_hopeless() {
    local why=''
    if [ -n "${DOCKER_HOST:-}" ]; then
        # An engine installed here would not be the one that is asked for.
        why="no Docker engine answers at DOCKER_HOST=$DOCKER_HOST"
    elif [ "$(uname -s)" != Linux ]; then
        why='no Docker engine answers; start Docker Desktop (or another engine) first'
    elif ! is_root; then
        why='no Docker engine answers for this user, and only root can install or start one'
    elif ! have dockerd && ! have apt-get; then
        why='there is no Docker engine here, and this script can install one only on Debian'
    elif ! unshare --mount --net --pid --fork true 2>/dev/null; then
        die 'here not even root may create namespaces, so no container can run. Use a machine of your own, a VM, or a privileged container.'
    fi
    [ -z "$why" ] || die "$why. To go on: $DOCKER_HELP."
}

install_engine() {
    say "no Docker engine here: installing Debian's docker.io (about 100 MB)"
    apt_install docker.io iptables ca-certificates || die "could not install docker.io. To go on: $DOCKER_HELP."
    # From Debian 13 on the client is a package of its own.
    have docker || apt_install docker-cli || die "docker.io came without a client. To go on: $DOCKER_HELP."
}

install_plugins() {
    can_install || die "the docker client lacks its buildx or compose plugin. To go on: $DOCKER_HELP."
    if apt_offers docker-buildx && apt_offers docker-compose; then
        apt_install docker-buildx docker-compose || true
    else
        plugins_from_trixie || true
    fi
    plugins_answer || die "could not add buildx and compose to the docker client. To go on: $DOCKER_HELP."
}

# Debian 12 has neither plugin; the binaries of Debian 13 need nothing but a libc that 12 has too.
plugins_from_trixie() {
    local folder status=0
    say 'fetching the buildx and compose plugins from Debian 13 (26 MB)'
    apt_install debian-archive-keyring || return 1
    folder=$(mktemp -d)
    unpack_plugins "$folder" || status=1
    rm -rf "$folder"
    return "$status"
}

unpack_plugins() {
    local folder=$1 deb target=/usr/libexec/docker/cli-plugins
    debian_download trixie "$folder" docker-buildx docker-compose || return 1
    for deb in "$folder"/*.deb; do dpkg -x "$deb" "$folder/unpacked" || return 1; done
    mkdir -p "$target"
    install -m 755 "$folder/unpacked$target"/docker-* "$target/"
}

# One script at a time starts the engine; the others find it running.
start_engine() {
    exec 9>/run/howdah-dockerd.lock
    flock 9
    if ! engine_answers; then
        if [ -d /run/systemd/system ]; then
            say 'starting Docker through systemd'
            quietly systemctl start docker || true
        else
            start_dockerd
        fi
        await_engine
    fi
    exec 9>&-
}

# Where no init starts services (containers, small VMs) dockerd is started as a session of its own.
start_dockerd() {
    say "starting dockerd (log: $DOCKERD_LOG)"
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup || true
    # The number in the pid file of an engine that was killed may belong to somebody else by now.
    grep -qsx dockerd "/proc/$(cat /run/docker.pid 2>/dev/null || echo 0)/comm" || rm -f /run/docker.pid
    setsid dockerd >>"$DOCKERD_LOG" 2>&1 </dev/null 9>&- &
    disown
}

await_engine() {
    local deadline=$((SECONDS + 60))
    until engine_answers; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            tail -n 15 "$DOCKERD_LOG" >&2 || true
            die "dockerd did not answer within 60 s; its last words are above. To go on: $DOCKER_HELP."
        fi
        sleep 0.3
    done
}
