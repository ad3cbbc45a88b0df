//! Records of the control device: the largest one fits, and garbage is refused.

use crate::stats::tests::filled;
use crate::{
    Answer, BLOCK_RUNS, BadRecord, BlockRun, BlockState, Call, MAX_RECORD, Memmap, Owner, Pmem, PmemUse,
    Pressure, Report, Resize, ResizeState, Size, UnmovablePage, ZoneName, decode, encode,
};

#[test]
fn largest_record_fits() {
    let page = Some(UnmovablePage { pfn: u64::MAX, owner: Owner::Workload(u32::MAX) });
    let resize = Report::Resize(Resize {
        region: u64::MAX,
        plugged: Size(u64::MAX),
        requested: Size(u64::MAX),
        generation: u32::MAX,
        state: ResizeState::Unmovable { pages: u64::MAX, first: [page; 4] },
    });
    let stats = Report::Done { id: u32::MAX, answer: Answer::Stats(filled(|| u64::MAX)) };
    let run = Some(BlockRun {
        addr: u64::MAX,
        count: u64::MAX,
        size: Size(u64::MAX),
        boot: false,
        state: BlockState::Deferred,
        zone: Some(ZoneName::Movable),
        node: u8::MAX,
        plugged: Some(Size(u64::MAX)),
        memmap: Some(Memmap { pages: u64::MAX, on_memory: true }),
    });
    let answer = Answer::Blocks { runs: [run; BLOCK_RUNS], next: Some(u64::MAX) };
    let blocks = Report::Done { id: u32::MAX, answer };
    let mapped = PmemUse { pages: u64::MAX, users: u64::MAX, memmap_pages: u64::MAX, altmap: true };
    let device = Pmem { start: u64::MAX, size: Size(u64::MAX), mapped: Some(mapped) };
    let pmem = Report::Done { id: u32::MAX, answer: Answer::Pmem(device) };
    let pressure = Pressure {
        available: Size(u64::MAX),
        short: true,
        waiting: u32::MAX,
        waited: u64::MAX,
        gave_up: u64::MAX,
        longest_micros: u64::MAX,
        failed: u64::MAX,
    };
    for report in [resize, stats, blocks, pmem, Report::Pressure(pressure)] {
        let mut buffer = [0; MAX_RECORD];
        let bytes = encode(&report, &mut buffer).unwrap();
        assert_eq!(decode::<Report>(bytes), Ok(report));
    }
}

#[test]
fn garbage_is_refused() {
    assert_eq!(decode::<Report>(&[]), Err(BadRecord));
    assert_eq!(decode::<Report>(&[0xff; 16]), Err(BadRecord));
    assert_eq!(decode::<Call>(&[0; MAX_RECORD + 1]), Err(BadRecord));
}
