//! How long a virtio-mem device is busy with taking memory away that the guest had touched. Its lock is held meanwhile, so
//! that a read of its registers waits.

use std::time::Duration;

use tidevm_bench::clock::median;
use tidevm_bench::table::{Row, Table, time};
use tidevm_machine::{Config, Confinement, ConsoleMode, HotplugConfig, Size, Vm, VmHandle};
use tidevm_session::script::Script;
use tidevm_session::{Ended, record};

/// Machines.
const ROUNDS: usize = 3;
/// One page in 16 is touched, and with it each of the host's huge pages.
const MIB_TOUCHED: u64 = 1024;
/// The most milliseconds per GiB.
const MOST: f64 = 5.0;

/// Adds the row.
pub fn measure(table: &mut Table) {
    table.section("Unplug of memory that the guest had touched");
    let rounds: Result<Vec<_>, String> = (0..ROUNDS).map(|_| busy()).collect();
    match rounds {
        Ok(times) => {
            let (sums, longest): (Vec<_>, Vec<_>) = times.into_iter().unzip();
            let busy = median(sums);
            let row = Row::new("device busy, per GiB", time(busy));
            table.add(row.target(format!("<= {MOST} ms"), busy <= MOST * 1e6));
            let longest: f64 = longest.into_iter().fold(0.0, f64::max);
            table.add(Row::new("requests of a GiB, at most", format!("{longest}")));
        }
        Err(error) => table.add(Row::new("device busy, per GiB", format!("not measured: {error}"))),
    }
}

/// Nanoseconds that the requests to unplug a GiB took, and their number.
fn busy() -> Result<(f64, f64), String> {
    let config = Config {
        memory: Size::mib(256),
        hotplug: vec![HotplugConfig::new(Size::mib(MIB_TOUCHED))],
        console: ConsoleMode::Off,
        confinement: Confinement::STRICT,
        ..Config::default()
    };
    let text = format!(
        "plug {MIB_TOUCHED}M\nhog {}M movable scattered as touched\nrelease touched\nresize 0\n",
        MIB_TOUCHED / 16
    );
    let script = Script::parse("bench", &text).map_err(|errors| errors.to_string())?;
    let session = Vm::apart(config, |vm| {
        let counts = VmHandle::clone(&vm);
        let record = record(vm, &script);
        (record.summary.ended, counts.mem_requests())
    });
    let (ended, requests) = session.map_err(|error| error.to_string())?;
    if ended != Ended::Done {
        return Err(format!("{ended:?}"));
    }
    let unplug = requests[0].unplug;
    let busy: Duration = unplug.sum;
    let gib = MIB_TOUCHED as f64 / 1024.0;
    Ok((busy.as_secs_f64() * 1e9 / gib, unplug.parts.iter().sum::<u64>() as f64 / gib))
}
