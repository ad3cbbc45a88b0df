//! The calls that wait for an answer of the guest.

use std::time::Duration;

use tidevm_abi::Answer;

use super::{SharedState, State, WaitError};
use crate::sync::lock;

impl SharedState {
    /// Makes room for the answer to call `id`.
    pub(crate) fn expect_answer(&self, id: u32) {
        lock(&self.inner).answers.insert(id, None);
    }

    /// Undoes [`SharedState::expect_answer`].
    pub(crate) fn forget_answer(&self, id: u32) {
        lock(&self.inner).answers.remove(&id);
    }

    /// Takes the answer to call `id`, if it has come.
    pub(crate) fn try_take_answer(&self, id: u32) -> Option<Result<Answer, WaitError>> {
        let mut inner = lock(&self.inner);
        let interruption = inner.state.interruption();
        let answer = inner.answers.get(&id)?.clone().or_else(|| interruption.map(Err))?;
        inner.answers.remove(&id);
        Some(answer)
    }

    /// Waits for the answer to call `id` and takes it. Otherwise it forgets the call; a later answer is a bad
    /// record.
    pub(crate) fn take_answer(&self, id: u32, limit: Duration, what: &str) -> Result<Answer, WaitError> {
        self.await_answer(id, limit).unwrap_or_else(|| {
            self.forget_answer(id);
            Err(WaitError::Deadline { what: what.to_owned(), after: limit })
        })
    }

    /// Waits for the answer to call `id` and takes it. `None` after `limit`: the call is still open.
    pub(crate) fn await_answer(&self, id: u32, limit: Duration) -> Option<Result<Answer, WaitError>> {
        match self.wait_inner(limit, "an answer", |inner| inner.answers.get(&id)?.clone()) {
            Err(WaitError::Deadline { .. }) => None,
            answer => {
                self.forget_answer(id);
                Some(answer.and_then(|answer| answer))
            }
        }
    }

    /// Waits for the answer to call `id` and takes it, unless `stop` says that it is not waited for any more. `None`
    /// then, and the answer can still be taken. After an error the call is forgotten; a later answer is a bad record.
    pub(crate) fn take_answer_unless(
        &self,
        id: u32,
        limit: Duration,
        what: &str,
        mut stop: impl FnMut(&State) -> bool,
    ) -> Result<Option<Answer>, WaitError> {
        let answer = self.wait_inner(limit, what, |inner| match inner.answers.get(&id)?.clone() {
            Some(answer) => Some(Some(answer)),
            None => stop(&inner.state).then_some(None),
        });
        if matches!(answer, Ok(None)) {
            return Ok(None);
        }
        self.forget_answer(id);
        answer?.transpose()
    }
}
