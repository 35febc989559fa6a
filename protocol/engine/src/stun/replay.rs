//! Lets each check request of a peer count once, for the whole life of a session, in constant memory.
//!
//! Without this, an observer could record a request and send it later from an address of its choice, and we would
//! answer it and learn that address.

/// How many sequences below the highest are told apart, `docs/spec/paths.md` section 1.2.
const WINDOW: u64 = 128;

/// The highest sequence seen and which of those just below it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayWindow {
    highest: u64,
    /// Bit `n` stands for `highest - n`.
    seen: u128,
}

impl ReplayWindow {
    /// Whether this sequence is fresh; from now on it is not. Call only with a sequence whose message verified, or a
    /// forger could burn the sequences to come.
    pub fn accept(&mut self, sequence: u64) -> bool {
        if sequence == 0 {
            return false;
        }
        if sequence > self.highest {
            let ahead = sequence - self.highest;
            self.seen = if ahead < WINDOW { (self.seen << ahead) | 1 } else { 1 };
            self.highest = sequence;
            return true;
        }
        let behind = self.highest - sequence;
        if behind >= WINDOW || self.seen & (1 << behind) != 0 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_counts_once_in_any_order() {
        let mut window = ReplayWindow::default();
        for sequence in [3, 1, 2, 200, 199, 100] {
            assert!(window.accept(sequence), "{sequence} is fresh");
            assert!(!window.accept(sequence), "{sequence} was seen");
        }
    }

    #[test]
    fn what_is_older_than_the_window_is_refused() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(1000));
        assert!(!window.accept(1000 - WINDOW));
        assert!(window.accept(1000 - WINDOW + 1));
    }

    #[test]
    fn zero_is_never_a_sequence() {
        assert!(!ReplayWindow::default().accept(0));
    }
}
