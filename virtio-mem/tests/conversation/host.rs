//! The host: which device blocks it backs, and which calls fail.

use virtio_mem::blocks::BlockBitmap;
use virtio_mem::{Backing, Busy, PluggedRuns, Span};

/// Stricter than a real host: plugging a plugged device block, or unplugging an unplugged one, fails the test.
pub struct Host {
    pub backed: BlockBitmap,
    /// The device block that cannot be plugged.
    pub fails_at: Option<u64>,
    /// Whether the next call fails.
    pub fails_now: bool,
}

impl Host {
    pub fn new(blocks: u64) -> Host {
        Host { backed: BlockBitmap::new(blocks), fails_at: None, fails_now: false }
    }
}

impl Backing for Host {
    fn plug(&mut self, span: Span) -> Result<(), Busy> {
        let range = span.blocks();
        assert_eq!(self.backed.count_in(range), 0, "plug of {range:?}, which is partly plugged");
        let fails = self.fails_at.is_some_and(|block| (range.first()..range.end()).contains(&block));
        if std::mem::take(&mut self.fails_now) || fails {
            return Err(Busy::default());
        }
        self.backed.set(range);
        Ok(())
    }

    fn unplug(&mut self, span: Span) -> Result<(), Busy> {
        let range = span.blocks();
        assert_eq!(
            self.backed.count_in(range),
            range.count(),
            "unplug of {range:?}, of which some is not plugged"
        );
        if std::mem::take(&mut self.fails_now) {
            return Err(Busy::default());
        }
        self.backed.clear(range);
        Ok(())
    }

    fn unplug_all(&mut self, plugged: &PluggedRuns) -> Result<(), Busy> {
        assert!(plugged.runs().map(Span::blocks).eq(self.backed.runs()), "all runs are named");
        if std::mem::take(&mut self.fails_now) {
            return Err(Busy::default());
        }
        for run in self.backed.clone().runs() {
            self.backed.clear(run);
        }
        Ok(())
    }
}
