//! How long to look for the driver's next request before waiting for its kick.
//!
//! A driver that answers a completion with another request does so within microseconds; who looks at its ring that long saves
//! it the notification, and so an exit, and itself a wake-up. Looking costs processor time: it is done after requests only,
//! for a time that grows while it pays and shrinks to nothing while it does not. Nothing here reads a clock, which may be a
//! system call.

/// The shortest look, in rounds of a load and a pause: 1 to 3 µs.
const LEAST: u32 = 32;
/// The longest look: 30 to 60 µs.
const MOST: u32 = 1024;
/// After a look that gave up for good, this many batches pass before the next one.
const FIRST_REST: u32 = 16;
/// The longest such rest.
const LONGEST_REST: u32 = 1024;

/// The state of one ring.
#[derive(Debug)]
pub(super) struct Polling {
    allowed: bool,
    rounds: u32,
    /// Batches until the next try.
    rest: u32,
    next_rest: u32,
}

impl Polling {
    /// For a host with `cpus` processors. With one, every look would be taken from the guest's own time.
    pub(super) fn new(cpus: usize) -> Self {
        Self { allowed: cpus > 1, rounds: LEAST, rest: 0, next_rest: FIRST_REST }
    }

    /// The rounds to look after the batch that was just done.
    pub(super) fn rounds(&mut self) -> u32 {
        if !self.allowed {
            return 0;
        }
        if self.rounds == 0 {
            match self.rest.checked_sub(1) {
                Some(rest) => self.rest = rest,
                None => self.rounds = LEAST,
            }
        }
        self.rounds
    }

    /// The look found a request.
    pub(super) fn hit(&mut self) {
        self.rounds = self.rounds.saturating_mul(2).min(MOST);
        self.next_rest = FIRST_REST;
    }

    /// The look found nothing.
    pub(super) fn miss(&mut self) {
        self.rounds /= 2;
        if self.rounds < LEAST {
            self.rounds = 0;
            self.rest = self.next_rest;
            self.next_rest = self.next_rest.saturating_mul(2).min(LONGEST_REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_with_one_processor_never_looks() {
        let mut polling = Polling::new(1);
        polling.hit();
        assert!((0..5000).all(|_| polling.rounds() == 0));
    }

    #[test]
    fn looks_that_pay_grow_to_a_bound() {
        let mut polling = Polling::new(2);
        assert_eq!(polling.rounds(), LEAST);
        (0..40).for_each(|_| polling.hit());
        assert_eq!(polling.rounds(), MOST);
    }

    #[test]
    fn looks_that_do_not_pay_become_rare() {
        let mut polling = Polling::new(2);
        let looks = (0..100_000)
            .filter(|_| {
                polling.rounds() > 0 && {
                    polling.miss();
                    true
                }
            })
            .count();
        assert!(looks < 120, "{looks} looks of 100000 batches");
    }

    #[test]
    fn a_look_that_pays_makes_the_next_rest_short() {
        let mut polling = Polling::new(2);
        let rest = |polling: &mut Polling| {
            while polling.rounds() > 0 {
                polling.miss();
            }
            (0..).find(|_| polling.rounds() > 0)
        };
        let (first, second) = (rest(&mut polling), rest(&mut polling));
        assert!(first < second, "{first:?} and {second:?}");
        polling.hit();
        assert_eq!(rest(&mut polling), first);
    }
}
