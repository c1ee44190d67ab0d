//! Clients that keep a session open to every member and commit wherever a server accepts it.

use std::rc::Rc;

use crate::{postgres, properties, world::World};

/// One session: lives in a backend, and dies with it.
pub(crate) async fn session(world: Rc<World>, node: usize, _number: usize) {
    let (low, high) = world.setup.commit_every;
    loop {
        world.sim.sleep(world.between(low, high)).await;
        let serial = world.nodes[node].pg.serial.get();
        let bytes = world.setup.commit_bytes;
        if let Some((pos, confirmed)) = postgres::commit(&world, node, bytes).await
            && world.nodes[node].pg.serial.get() == serial
        {
            properties::acknowledged(&world, node, pos, confirmed);
        }
    }
}
