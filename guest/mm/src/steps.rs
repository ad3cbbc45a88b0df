//! Looks into the middle of an operation, in unit tests.
//!
//! Mirrors nothing of Linux. A test gives a look and an operation. The look runs after every step of the
//! operation on this thread: a change of the state of a page or of a section, or of the limits of a CPU's lists, and a
//! read of a zone's free or deferred pages. So it sees the states that another CPU could see, one after the other,
//! and a test of the order of two steps does not depend on chance.
//!
//! Invariant: a look changes nothing, or only what another CPU could change there. The look does not run for
//! steps that a look itself makes.

use std::cell::RefCell;
use std::rc::Rc;

type Look = Rc<dyn Fn()>;

std::thread_local! {
    static LOOK: RefCell<Option<Look>> = const { RefCell::new(None) };
}

/// Runs `operation`, and `look` after every step of it. Returns the number of steps.
pub(crate) fn each(look: impl Fn() + 'static, operation: impl FnOnce()) -> u32 {
    let steps = Rc::new(core::cell::Cell::new(0));
    let count = Rc::clone(&steps);
    let look = move || {
        count.set(count.get() + 1);
        look();
    };
    LOOK.set(Some(Rc::new(look)));
    operation();
    LOOK.set(None);
    steps.get()
}

/// Runs `body`, whose steps are not looked at.
pub(crate) fn pause(body: impl FnOnce()) {
    let look = LOOK.take();
    body();
    LOOK.set(look);
}

/// A step was made.
pub(crate) fn made() {
    let Some(look) = LOOK.take() else { return };
    look();
    LOOK.set(Some(look));
}
