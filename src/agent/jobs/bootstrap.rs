//! Making a new cluster, and telling the store whose data it is.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{super::instance::chain, Context, replace};
use crate::{
    dcs::{Dcs, Key, When, Written},
    ha::Upstream,
    model::{SystemId, Version},
    postgres::{
        datadir::{INCOMPLETE, NEW_CLUSTER},
        files,
    },
};

/// A new cluster: data, roles and scripts first, then the identity goes into the store. The lock is taken by the next
/// turn, as after any other stop: until then postgres was reachable through its Unix socket only.
///
/// With `remote`, a copy of that cluster, which stays a replica.
pub(super) async fn bootstrap(
    context: &Context,
    remote: Option<&Upstream>,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let Some(claim) = context.claim else {
        return Err("bootstrapping was not claimed in the DCS".to_owned());
    };
    let made = match remote {
        None => {
            let instance = &context.instance;
            instance
                .bootstrap(&context.dynamic, &context.progress, cancel)
                .await
        }
        Some(_) => match replace(context, remote, false, cancel).await {
            Ok(()) => context.instance.control().await.map(|control| control.system_id),
            Err(failure) => Err(failure.to_string()),
        },
    };
    let id = match made {
        Ok(id) => id,
        Err(error) => {
            abandon_claim(&*context.dcs, claim).await;
            return Err(error);
        }
    };
    if !register(&*context.dcs, &id, claim).await {
        // Ours must never be served: marked, it counts as empty, and this member copies the cluster there is.
        mark_incomplete(context)?;
        return Err(format!(
            "another member has initialized the cluster meanwhile (key {}); the new data directory, system \
             identifier {id}, is not used",
            Key::Initialize.path()
        ));
    }
    let config = serde_json::Value::Object(context.dynamic.raw.clone()).to_string();
    match context.dcs.write(Key::Config, &config, When::Absent).await {
        Ok(Written::Yes(_)) => {}
        Ok(Written::Refused) => info!(key = Key::Config.path(), "is there already, keeping it"),
        // The leader writes what is missing as one of its duties.
        Err(error) => warn!(key = Key::Config.path(), %error, "could not be written yet"),
    }
    info!(system_id = %id, "initialized a new cluster");
    Ok(())
}

/// Writes the identity in the place of our claim. False is proof that the claim is ours no more; a store that does not
/// answer proves nothing, and the leader writes what is missing as one of its duties.
async fn register(dcs: &dyn Dcs, id: &SystemId, claim: Version) -> bool {
    match dcs.write(Key::Initialize, &id.0, When::Version(claim)).await {
        Ok(Written::Yes(_)) => true,
        Ok(Written::Refused) => false,
        Err(error) => {
            warn!(key = Key::Initialize.path(), %error, "could not be written yet");
            true
        }
    }
}

/// Only our own claim: by now another member may have made one, or have finished.
async fn abandon_claim(dcs: &dyn Dcs, claim: Version) {
    match dcs.delete(Key::Initialize, When::Version(claim)).await {
        Ok(Written::Yes(_)) => {}
        Ok(Written::Refused) => info!("the claim to bootstrap was another member's already"),
        Err(error) => warn!(%error, "could not remove the claim to bootstrap, others will wait for ttl"),
    }
}

fn mark_incomplete(context: &Context) -> Result<(), String> {
    let marker = context.instance.postmaster().home().data_dir.join(INCOMPLETE);
    files::write_atomic(&marker, NEW_CLUSTER, 0o600).map_err(|error| {
        format!(
            "could not mark the new data directory as unused: {}",
            chain(&error)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn only_our_own_claim_is_turned_into_a_cluster_or_removed() {
        let store = crate::dcs::memory::Store::system();
        let member = store.member("a", Duration::from_secs(30));
        let id = SystemId("7".to_owned());
        let claim = async || match member.write(Key::Initialize, "", When::Absent).await {
            Ok(Written::Yes(version)) => version,
            other => panic!("not claimed: {other:?}"),
        };
        let present = async || member.cluster().await.expect("reachable").initialize;
        let first = claim().await;
        assert!(register(&member, &id, first).await);
        assert_eq!(present().await.as_deref(), Some("7"));
        // Another member's cluster, and another member's claim.
        for theirs in ["8", ""] {
            store.put("initialize", theirs, 0);
            assert!(!register(&member, &id, first).await);
            abandon_claim(&member, first).await;
            assert_eq!(present().await.as_deref(), Some(theirs));
        }
        store.remove("initialize");
        let second = claim().await;
        abandon_claim(&member, second).await;
        assert_eq!(present().await, None);
        store.set_outage(Some(crate::dcs::memory::Outage::Unreachable));
        assert!(register(&member, &id, second).await, "silence proves nothing");
    }
}
