//! Chance that depends on a seed and on what is being decided, not on what was decided before: two things that happen in another order are decided the same.

/// Mixes numbers into one (splitmix64 over each).
#[must_use]
pub fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x5851_f42d_4c95_7f2d, |sum, part| {
        let z = (sum ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// FNV-1a.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A sequence of numbers from a seed.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The sequence for what `parts` name.
    #[must_use]
    pub fn of(parts: &[u64]) -> Self {
        Self(mix(parts))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(&[self.0])
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// A number from `start` to `end`.
    pub fn between(&mut self, start: u64, end: u64) -> u64 {
        start.saturating_add(self.below(end.saturating_sub(start).saturating_add(1)))
    }

    /// `true` in so many of a thousand cases.
    pub fn permille(&mut self, of: u64) -> bool {
        self.below(1000) < of
    }

    /// Mostly short, sometimes long: microseconds that something takes whose usual time is `usual`.
    pub fn delay(&mut self, usual: u64) -> u64 {
        match self.below(100) {
            0..80 => self.between(usual / 2, usual),
            80..97 => self.between(usual, usual.saturating_mul(5)),
            _ => self.between(usual.saturating_mul(5), usual.saturating_mul(40)),
        }
    }
}
