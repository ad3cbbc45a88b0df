//! References to pages of device memory: a page with a user stays mapped.
//!
//! Mirrors Linux `get_dev_pagemap`, `put_dev_pagemap` and the reference count of a device page. Differs from
//! Linux on purpose: a page knows its user, which can be named when the range cannot be unmapped.
//!
//! Invariant: the references of a pgmap are its own, one per page, and the ones counted in its pages.

use core::fmt;

use crate::Mm;
use crate::addr::Pfn;
use crate::page::{DevUser, Kind, PageRef};
use crate::pageblock::MigrateType;
use crate::pgmap::{Pgmap, PgmapNr};
use crate::platform::Platform;

/// Why a page of device memory cannot be used, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DevPageError {
    /// It is not a page of device memory that is mapped.
    NotDevice,
    /// The user with this tag has it.
    UsedBy(u32),
    /// The user has no reference to it, or as many as can be counted.
    Count,
}

impl fmt::Display for DevPageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDevice => f.write_str("it is not a page of device memory that is mapped"),
            Self::UsedBy(user) => write!(f, "user {user} has the page"),
            Self::Count => f.write_str("the user has no reference to the page, or as many as can be counted"),
        }
    }
}

impl core::error::Error for DevPageError {}

/// A page of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DevPage {
    /// Its pgmap.
    pub pgmap: PgmapNr,
    /// Its user.
    pub user: Option<DevUser>,
    /// The type of its pageblock.
    pub migrate_type: MigrateType,
}

impl<P: Platform> Mm<P> {
    /// The page of device memory `pfn`, if it can be used (Linux `get_dev_pagemap` and a look at the page). A
    /// page that is found is initialised, even while ranges are mapped and unmapped.
    pub fn dev_page(&self, pfn: Pfn) -> Option<DevPage> {
        let (nr, _) = self.pgmaps.of(pfn)?;
        // The range may be unmapped since the look at its gate. Then its sections are Absent, and nothing else of it has
        // gone yet.
        let pages = self.sparse.pages(pfn.section())?;
        let (page, section) = (pages.page(pfn), pages.section());
        assert_eq!(page.state().kind(), Kind::Device, "state of {pfn:?} of pgmap {nr:?}");
        assert_eq!(page.pgmap(), u32::from(nr.0), "pgmap of {pfn:?}");
        let migrate_type = section.pageblocks.migrate_type(pfn.pageblock());
        Some(DevPage { pgmap: nr, user: page.dev_user(), migrate_type })
    }

    /// Takes a reference to the page of device memory `pfn` in the name of `user`: the page stays mapped until
    /// the reference is given back. A page has one user at a time, which may have many references.
    ///
    /// # Errors
    /// See [`DevPageError`].
    pub fn get_dev_page(&self, pfn: Pfn, user: u32) -> Result<(), DevPageError> {
        let (_, pgmap) = self.pgmaps.of(pfn).ok_or(DevPageError::NotDevice)?;
        if !pgmap.try_get() {
            return Err(DevPageError::NotDevice);
        }
        let result = self.change_user(pgmap, self.sparse.page(pfn), |now| match now {
            None => Ok(Some(DevUser { tag: user, count: 1 })),
            Some(DevUser { tag, .. }) if tag != user => Err(DevPageError::UsedBy(tag)),
            Some(DevUser { tag, count }) => match count.checked_add(1) {
                Some(count) => Ok(Some(DevUser { tag, count })),
                None => Err(DevPageError::Count),
            },
        });
        if result.is_err() {
            pgmap.put();
        }
        result
    }

    /// Gives back a reference of [`Self::get_dev_page`].
    ///
    /// # Errors
    /// See [`DevPageError`]; nothing has changed then.
    pub fn put_dev_page(&self, pfn: Pfn, user: u32) -> Result<(), DevPageError> {
        let (_, pgmap) = self.pgmaps.of(pfn).ok_or(DevPageError::NotDevice)?;
        // A caller without a reference does not keep the range.
        let pages = self.sparse.pages(pfn.section()).ok_or(DevPageError::NotDevice)?;
        self.change_user(pgmap, pages.page(pfn), |now| match now {
            None => Err(DevPageError::Count),
            Some(DevUser { tag, .. }) if tag != user => Err(DevPageError::UsedBy(tag)),
            Some(DevUser { tag, count }) => Ok((count > 1).then(|| DevUser { tag, count: count - 1 })),
        })?;
        pgmap.put();
        Ok(())
    }

    /// Replaces the user of `page` of `pgmap` by the result of `change`, while a reference keeps the page
    /// mapped.
    fn change_user(
        &self,
        pgmap: &Pgmap,
        page: PageRef<'_>,
        change: impl Fn(Option<DevUser>) -> Result<Option<DevUser>, DevPageError>,
    ) -> Result<(), DevPageError> {
        page.update_dev_user(change)?;
        pgmap.assert_taken();
        Ok(())
    }
}
