//! The bounds that a user asks for: `min=256M,max=8G,headroom=10%`, and whether a machine can have them.

use std::fmt;
use std::str::FromStr;

use tidevm_abi::Size;
use tidevm_autosize::{Bounds, BoundsError, DEFAULT_HEADROOM, MOST_HEADROOM};
use tidevm_machine::Config;

/// The bounds of a machine's memory as a user says them. Sizes are totals: boot memory and hotplug memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The smallest size.
    pub min: Size,
    /// The largest size.
    pub max: Size,
    /// Percent of the used memory that is kept free.
    pub headroom: u8,
}

/// Why a machine cannot be sized so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// It has no hotplug region, or several.
    #[error("a machine that is sized automatically has one hotplug region, and this one has {0}")]
    Regions(usize),
    /// Its kernel does not tell what it uses.
    #[error(
        "a kernel other than the built-in guest is sized by the statistics of a balloon: add --balloon stats=1s"
    )]
    Silent,
    /// The bounds.
    #[error(transparent)]
    Bounds(#[from] BoundsError),
}

impl Wish {
    /// The bounds of the machine `config`.
    ///
    /// # Errors
    /// [`WishError`].
    pub fn bounds(&self, config: &Config) -> Result<Bounds, WishError> {
        let [region] = &config.hotplug[..] else { return Err(WishError::Regions(config.hotplug.len())) };
        let tells = config.balloon.is_some_and(|balloon| balloon.stats_interval.is_some());
        if config.kernel.is_some() && !tells {
            return Err(WishError::Silent);
        }
        let sizes = (self.min, self.max);
        Ok(Bounds::new(sizes, self.headroom, config.memory, region.size, region.device_block)?)
    }
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut min, mut max, mut headroom) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
            let size = || value.parse::<Size>().map_err(|error| format!("{key}={value}: {error}"));
            let twice = match key {
                "min" => min.replace(size()?).is_some(),
                "max" => max.replace(size()?).is_some(),
                "headroom" => headroom.replace(percent(value)?).is_some(),
                _ => return Err(format!("unknown key `{key}`; the keys are min, max and headroom")),
            };
            if twice {
                return Err(format!("{key} is given twice"));
            }
        }
        let missing = |key: &str| format!("{key}=SIZE is missing");
        Ok(Self {
            min: min.ok_or_else(|| missing("min"))?,
            max: max.ok_or_else(|| missing("max"))?,
            headroom: headroom.unwrap_or(DEFAULT_HEADROOM),
        })
    }
}

/// `10%`.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|number| number.parse().ok());
    number
        .filter(|percent| *percent <= MOST_HEADROOM)
        .ok_or_else(|| format!("headroom={text} is not a percentage from 0% to {MOST_HEADROOM}%"))
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "min={},max={},headroom={}%", self.min, self.max, self.headroom)
    }
}

#[cfg(test)]
mod tests {
    use tidevm_abi::Size;
    use tidevm_machine::{BalloonConfig, Config, HotplugConfig};

    use super::{Wish, WishError};

    #[test]
    fn a_wish_prints_as_it_is_read() {
        let wish = Wish { min: Size::mib(256), max: Size::gib(8), headroom: 25 };
        assert_eq!("headroom=25%,max=8G,min=256M".parse(), Ok(wish));
        assert_eq!(wish.to_string().parse(), Ok(wish));
        assert_eq!("min=256M,max=8G".parse(), Ok(Wish { headroom: 10, ..wish }));
    }

    #[test]
    fn a_wish_that_is_none_is_told() {
        for (text, part) in [
            ("", "`` is not KEY=VALUE"),
            ("256M", "`256M` is not KEY=VALUE"),
            ("min=256M", "max=SIZE is missing"),
            ("max=256M", "min=SIZE is missing"),
            ("min=256M,max=8Q", "max=8Q: not a size"),
            ("min=1G,min=1G,max=8G", "min is given twice"),
            ("min=1G,max=8G,most=9G", "the keys are min, max and headroom"),
            ("min=1G,max=8G,headroom=10", "headroom=10 is not a percentage from 0% to 100%"),
            ("min=1G,max=8G,headroom=101%", "headroom=101% is not"),
            ("min=1G,max=8G,headroom=300%", "headroom=300% is not"),
            ("min=1G,max=8G,headroom=-1%", "headroom=-1% is not"),
        ] {
            let error = text.parse::<Wish>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_machine_has_to_have_room_for_the_bounds() {
        let region = HotplugConfig::new(Size::gib(1));
        let mut config = Config { memory: Size::mib(256), hotplug: vec![region], ..Config::default() };
        let bounds = |config: &Config, text: &str| {
            let wish: Wish = text.parse().unwrap();
            wish.bounds(config).map_err(|error| error.to_string())
        };
        assert!(bounds(&config, "min=256M,max=1280M").is_ok());
        for (text, part) in [
            ("min=1G,max=512M", "min=1G is above max=512M"),
            ("min=128M,max=1G", "min=128M is below the boot memory of 256M, which stays"),
            ("min=256M,max=2G", "max=2G is above 1280M, boot memory and hotplug region together"),
            (
                "min=257M,max=1G",
                "min=257M is not the boot memory of 256M and whole device blocks of 2M: the next sizes are 256M and 258M",
            ),
        ] {
            let error = bounds(&config, text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let regions = |config: &Config| config.hotplug.len();
        config.hotplug.push(HotplugConfig::new(Size::gib(1)));
        let wish: Wish = "min=256M,max=1G".parse().unwrap();
        assert_eq!(wish.bounds(&config), Err(WishError::Regions(regions(&config))));
        config.hotplug.clear();
        assert_eq!(wish.bounds(&config), Err(WishError::Regions(0)));
        config.hotplug.push(HotplugConfig::new(Size::gib(1)));
        config.kernel = Some("linux".into());
        assert_eq!(wish.bounds(&config), Err(WishError::Silent));
        config.balloon = Some(BalloonConfig { reporting: true, stats_interval: None });
        assert_eq!(wish.bounds(&config), Err(WishError::Silent));
        config.balloon = Some("stats=1s".parse().unwrap());
        assert!(wish.bounds(&config).is_ok());
    }
}
