//! A row of items that come without end, of which evenly spread ones are kept.
//!
//! Invariant: at most [`Thinned::most`] items are kept.

/// Items in the order in which they came. When there are more than `most`, every other one is dropped, and from then on as
/// many of the new ones.
#[derive(Clone, Debug)]
pub struct Thinned<T> {
    kept: Vec<T>,
    most: usize,
    /// One of so many items is kept.
    stride: u64,
    /// How many came.
    count: u64,
}

impl<T> Thinned<T> {
    /// No items, of which at most `most` are kept.
    pub const fn at_most(most: usize) -> Self {
        Self { kept: Vec::new(), most, stride: 1, count: 0 }
    }

    /// An item comes. Returns whether it is to be kept.
    pub const fn comes(&mut self) -> bool {
        self.count += 1;
        self.count.is_multiple_of(self.stride)
    }

    /// Keeps the item that has come.
    pub fn keep(&mut self, item: T) {
        self.kept.push(item);
        if self.kept.len() > self.most {
            let mut keep = false;
            self.kept.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = self.stride.saturating_mul(2);
        }
    }

    /// The items that are kept.
    pub fn kept(&self) -> &[T] {
        &self.kept
    }

    /// How many came.
    pub const fn count(&self) -> u64 {
        self.count
    }
}
