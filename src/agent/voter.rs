//! A voter: the image's etcd and nothing else, for two members with data and a small third (`HOWDAH_ROLE=voter`).
//!
//! It has no PostgreSQL and no member key, takes no lock and promises nothing; its REST API shows what it sees of the cluster.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Identity, first_snapshot,
    handle::{AgentHandle, DcsView, Outlook, Snapshot},
    keep_dynamic,
    lease::Lease,
    member_tls,
    signals::{Early, Event, Signals},
    start::{self, Refusal, Store},
};
use crate::{
    api,
    client::Client,
    clock::Boottime,
    config::Config,
    dcs::{Dcs, DcsError},
    exit::Exit,
    guard::Guard,
    ha::why::Candidacy,
    metrics::Metrics,
    model::Cluster,
    telemetry::LevelHandle,
    tls,
};

/// Runs it to its end.
pub(super) async fn run(config: &Config, guard: Guard, level: LevelHandle, early: Early) -> Exit {
    match Box::pin(serve(config, guard, level, early)).await {
        Ok(()) => Exit::Ok,
        Err(refusal) => {
            error!(status = refusal.exit.code(), "cannot start: {refusal}");
            refusal.exit
        }
    }
}

async fn serve(config: &Config, guard: Guard, level: LevelHandle, early: Early) -> Result<(), Refusal> {
    let refuse = start::refuse;
    let listen = &config.restapi.listen;
    let listeners = api::bind_all(&listen.hosts, listen.port)
        .await
        .map_err(|error| refuse(Exit::Permission, format!("{error} (HOWDAH_RESTAPI_LISTEN)")))?;
    let certificate = watch::Sender::new(start::first_certificate(config)?);
    let Store { dcs, embedded, .. } = start::store(config).await?;
    let metrics = Metrics::new(&config.scope, &config.name)
        .map_err(|error| refuse(Exit::Internal, format!("metrics: {error}")))?;
    let (guard, level) = (Arc::new(guard), Arc::new(level));
    let lease = Lease::new(Arc::clone(&dcs), Arc::<Guard>::clone(&guard), None);
    let (initial, _) = keep_dynamic::at_start(&config.postgresql.data_dir, &config.bootstrap.dcs);
    let first = first_snapshot(&Identity::of(config), &initial);
    let published = watch::Sender::new(Arc::new(first));
    // Nobody takes them: whoever asks for something to be done here is told so.
    let (sender, _) = mpsc::channel(1);
    let handle = AgentHandle::new(published.subscribe(), sender, Arc::clone(&dcs), lease, metrics);
    let signals = Signals::install(early, guard, Arc::clone(&level), handle.clone())
        .map_err(|error| refuse(Exit::Os, format!("cannot install signal handlers: {error}")))?;
    let client = Client::new(start::credentials(config.ctl.authentication.as_ref()).as_ref());
    client.set_tls(member_tls::between_members(config));
    let (_access, access) = watch::channel(api::Access::load(&config.restapi).await);
    let options = api::Options {
        access,
        tls: certificate.subscribe(),
        client,
        levels: level,
        limits: api::Limits {
            drain_within: start::API_STOP,
            ..api::Limits::default()
        },
    };
    let shutdown = CancellationToken::new();
    let (_settings, settings) = watch::channel(config.restapi.tls.clone());
    let renewed = tokio::spawn(tls::server::keep(settings, certificate, shutdown.clone()));
    let mut serving = tokio::spawn(api::serve(listeners, handle, options, shutdown.clone()));
    info!("votes in the cluster's etcd, and has no PostgreSQL");
    let loop_wait = initial.timing.loop_wait;
    // Cancel-safe: nothing goes on with either after the first end.
    tokio::select! {
        () = watch_cluster(&*dcs, &published, loop_wait, signals) => {}
        ended = &mut serving => error!(?ended, "the REST API ended by itself, this is a bug"),
    }
    shutdown.cancel();
    renewed.abort();
    if !serving.is_finished() && tokio::time::timeout(start::API_STOP * 2, serving).await.is_err() {
        debug!("the REST API did not end in time");
    }
    if let Some(embedded) = embedded
        && !embedded.stop(start::ETCD_STOP).await
    {
        warn!("etcd had to be killed");
    }
    Ok(())
}

/// Until it is told to stop.
async fn watch_cluster(
    dcs: &dyn Dcs,
    published: &watch::Sender<Arc<Snapshot>>,
    loop_wait: std::time::Duration,
    mut signals: Signals,
) {
    let mut changes = dcs.changes();
    let mut next = Instant::now();
    let mut silent = false;
    loop {
        let look = async {
            sleep_until(next).await;
            dcs.cluster().await
        };
        tokio::select! {
            // Cancel-safe: it is asked again.
            seen = look => {
                next = Instant::now() + loop_wait;
                match (&seen, silent) {
                    (Err(because), false) => warn!(from = "seen", to = "silent", %because, "the store does not answer"),
                    (Ok(_), true) => info!(from = "silent", to = "seen", "the store answers again"),
                    _ => {}
                }
                silent = seen.is_err();
                published.send_modify(|last| *last = Arc::new(shown(last, seen, loop_wait)));
            }
            changed = changes.changed() => match changed {
                Ok(()) => next = Instant::now(),
                Err(_) => return,
            },
            event = signals.next() => match event {
                Event::Shutdown(_) => return,
                Event::InitGone => {
                    error!("init has ended, so this voter ends, too");
                    return;
                }
                Event::Reload => info!("a voter reads its configuration when it starts"),
            },
        }
    }
}

/// What is published of a look at the store: the last good one stays, with its age.
fn shown(last: &Snapshot, seen: Result<Cluster, DcsError>, loop_wait: std::time::Duration) -> Snapshot {
    let now = Boottime::now();
    let mut snapshot = last.clone();
    snapshot.next_run = now + loop_wait;
    snapshot.outlook = Outlook {
        candidacy: Candidacy::Cannot("it is a voter and has no PostgreSQL".to_owned()),
        ..Outlook::unknown()
    };
    if let Ok(cluster) = seen {
        snapshot.dcs = Some(DcsView {
            cluster: Arc::new(cluster),
            seen_at: now,
        });
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        snapshot.dcs_last_seen_epoch_s = since.map_or(0, |since| since.as_secs());
    }
    snapshot
}
