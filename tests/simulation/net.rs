//! The network: one endpoint per member, and one for the store. Connections are TCP: what a cut delays arrives once the
//! cut is healed, if somebody still waits for it.

use std::cell::{Cell, RefCell};

use crate::{
    exec::{Bell, MS, Nanos, Sim},
    rng::Rng,
};

pub(crate) struct Net {
    /// The endpoint of the store is the last.
    size: usize,
    /// Cuts per direction; several faults may cut the same.
    cuts: RefCell<Vec<u32>>,
    /// When a direction was last cut or lossy.
    bad_at: RefCell<Vec<Nanos>>,
    /// Packets lost of a hundred.
    loss: RefCell<Vec<u64>>,
    /// Delay beyond the usual.
    extra: Cell<Nanos>,
    healed: Bell,
    rng: RefCell<Rng>,
}

impl Net {
    pub(crate) fn new(members: usize, rng: Rng) -> Self {
        let size = members + 1;
        Self {
            size,
            cuts: RefCell::new(vec![0; size * size]),
            bad_at: RefCell::new(vec![0; size * size]),
            loss: RefCell::new(vec![0; size * size]),
            extra: Cell::new(0),
            healed: Bell::default(),
            rng: RefCell::new(rng),
        }
    }

    pub(crate) const fn store(&self) -> usize {
        self.size - 1
    }

    fn at(&self, from: usize, to: usize) -> usize {
        from * self.size + to
    }

    pub(crate) fn cut(&self, sim: &Sim, from: usize, to: usize) {
        let at = self.at(from, to);
        self.cuts.borrow_mut()[at] += 1;
        self.bad_at.borrow_mut()[at] = sim.now();
    }

    pub(crate) fn heal(&self, sim: &Sim, from: usize, to: usize) {
        let at = self.at(from, to);
        {
            let cuts = &mut self.cuts.borrow_mut()[at];
            *cuts = cuts.saturating_sub(1);
        }
        self.bad_at.borrow_mut()[at] = sim.now();
        self.healed.ring(sim);
    }

    pub(crate) fn set_loss(&self, sim: &Sim, from: usize, to: usize, percent: u64) {
        let at = self.at(from, to);
        self.loss.borrow_mut()[at] = percent;
        self.bad_at.borrow_mut()[at] = sim.now();
    }

    pub(crate) fn set_extra(&self, delay: Nanos) {
        self.extra.set(delay);
    }

    pub(crate) fn up(&self, from: usize, to: usize) -> bool {
        self.cuts.borrow()[self.at(from, to)] == 0
    }

    /// Both directions were neither cut nor lossy since then.
    pub(crate) fn good_since(&self, since: Nanos, a: usize, b: usize) -> bool {
        let good = |from, to| {
            let at = self.at(from, to);
            self.cuts.borrow()[at] == 0 && self.loss.borrow()[at] == 0 && self.bad_at.borrow()[at] <= since
        };
        good(a, b) && good(b, a) && self.extra.get() == 0
    }

    fn delay(&self, from: usize, to: usize) -> Nanos {
        let mut rng = self.rng.borrow_mut();
        let mut delay = rng.range(MS / 5, 2 * MS) + self.extra.get();
        let loss = self.loss.borrow()[self.at(from, to)];
        let mut retransmit = 200 * MS;
        while loss > 0 && rng.chance(loss) && retransmit < 10_000 * MS {
            delay += retransmit;
            retransmit *= 2;
        }
        if rng.chance(1) {
            delay += rng.range(0, 30 * MS);
        }
        delay
    }

    /// One message; resolves when it has arrived, which may be never.
    pub(crate) async fn transit(&self, sim: &Sim, from: usize, to: usize) {
        if from == to {
            sim.sleep(MS / 20).await;
            return;
        }
        loop {
            while !self.up(from, to) {
                self.healed.next(sim).await;
            }
            sim.sleep(self.delay(from, to)).await;
            if self.up(from, to) {
                return;
            }
        }
    }
}
