//! The simulation keeps its accounts, and the same fleet has the same day.

use tidevm_abi::Size;

use super::load::{Load, Swing};
use super::{DAY, MAX, MIN, Outcome, day, host_for, largest};

#[test]
fn loads_swing_tenfold_and_change_slowly() {
    let swing = Swing::of_a_day();
    let mut widest = 0;
    for number in 0..50 {
        let mut load = Load::new(number);
        let day: Vec<u64> = (0..DAY).map(|second| load.at(second, &swing).0).collect();
        let (least, most) = (day.iter().min().unwrap(), day.iter().max().unwrap());
        assert!(most / least >= 3 && most / least <= 10, "guest {number}: {least} to {most}");
        widest = widest.max(most / least);
        assert!(day.windows(2).all(|pair| pair[0].abs_diff(pair[1]) <= super::load::RATE));
    }
    assert!(widest >= 9, "{widest}");
    let busiest = |number| {
        let mut load = Load::new(number);
        (0..DAY).map(|second| (load.at(second, &swing).0, second)).max().unwrap().1
    };
    assert_ne!(busiest(1), busiest(2));
}

#[test]
fn a_day_can_be_repeated() {
    assert_eq!(day(20, host_for(15)), day(20, host_for(15)));
}

#[test]
fn guests_on_a_host_with_room_wait_for_it_never() {
    let outcome = day(20, host_for(20));
    assert_eq!(outcome.waited_for_host, 0);
    assert!(outcome.targets > 20, "{outcome:?}");
    assert!(outcome.average < outcome.most && outcome.most <= host_for(20), "{outcome:?}");
    assert!(outcome.most >= Size(MIN.0 * 20) && outcome.most <= Size(MAX.0 * 20), "{outcome:?}");
}

#[test]
fn guests_on_a_host_that_is_full_wait_and_take_no_more_than_it_has() {
    let host = host_for(10);
    let outcome = day(40, host);
    assert!(outcome.most <= host, "{outcome:?}");
    assert!(outcome.waited_for_host > 0, "{outcome:?}");
    assert!(outcome.millionths(outcome.waited_for_host + outcome.waited_for_step) <= 1_000_000);
    let none = day(3, Size(0));
    assert_eq!((none.most, none.waited_for_step), (Size(0), 0));
    assert_eq!(none.millionths(none.waited_for_host), 1_000_000);
    assert_eq!(day(0, host), Outcome::default());
}

#[test]
fn the_largest_fleet_fits_and_a_larger_one_does_not() {
    let best = largest(20, 25);
    assert!(best.guests > 20 && best.fits(), "{best:?}");
    assert!(!day(best.guests + 1, host_for(20)).fits(), "{best:?}");
    assert_eq!(best, largest(20, 60), "whatever is guessed");
}
