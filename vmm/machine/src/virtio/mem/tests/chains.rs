//! Chains that no driver may offer.

use super::*;
use crate::virtio::chain::Chain;

/// Writes a request that plugs one device block, and the place of its answer, as two descriptors from `table` on.
fn write_plug(rig: &mut Rig, table: u64) {
    let (from, to) = (rig.ring.place(0), rig.ring.place(1));
    rig.ring.fill(from, &Request { kind: RequestKind::Plug, addr: HOLE_END, nb_blocks: 1 }.to_bytes());
    // Address, size, flags (NEXT; WRITE), index of the next one: virtio 1.3, section 2.7.5.
    for (place, (address, size, flags, next)) in [(from, 24, 1, 1), (to, 10, 2, 0)].into_iter().enumerate() {
        let (size, flags, next): (u32, u16, u16) = (size, flags, next);
        let bytes =
            [&address.to_le_bytes()[..], &size.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        rig.ring.fill(table + 16 * place as u64, &bytes.concat());
    }
}

/// The longest indirect chain has 65,535 descriptors, and a queue holds 128 such chains.
#[test]
fn an_indirect_descriptor_is_not_followed_and_breaks_the_queue() {
    let mut rig = rig(4 * MIB);
    let table = 2 * MIB;
    write_plug(&mut rig, table);
    for head in 0..3 {
        rig.ring.offer_indirect(head, table, 65_535);
    }
    interrupts(&mut rig.mem);
    assert_eq!(rig.mem.serve(), IDLE);
    assert_eq!((rig.ring.used(), rig.shared.snapshot().mem[0].plugged), (0, Size(0)));
    assert_ne!(read(&mut rig.mem, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    assert_eq!(interrupts(&mut rig.mem), VIRTIO_MMIO_INT_CONFIG, "the driver is told");
    rig.ring = Ring::new(&rig.memory, 4 * MIB);
    initialise(&mut rig.mem, 1 << F_UNPLUGGED_INACCESSIBLE, &[&rig.ring]);
    assert_eq!(rig.ask(RequestKind::Plug, 0, 1).0, ACK);
}

/// A chain that goes in a circle is over when every descriptor of the table had its turn.
#[test]
fn a_chain_in_a_circle_ends() {
    let mut rig = rig(4 * MIB);
    write_plug(&mut rig, MIB);
    // The answer's descriptor leads back to itself: WRITE and NEXT, 1.
    rig.ring.fill(MIB + 16 + 12, &[3, 0, 1, 0]);
    rig.ring.offer_head(0);
    rig.mem.serve();
    assert_eq!((rig.ring.used(), rig.ring.written(0)), (1, 10));
    assert_eq!(rig.shared.snapshot().mem[0].plugged, Size(BLOCK));
}

impl Rig {
    /// Offers `buffers` as one chain and takes it: of the request and of the answer as many bytes as the device asks
    /// for.
    fn take(&mut self, buffers: &[(u64, u32, bool)]) -> Chain {
        let buffers: Vec<_> =
            buffers.iter().map(|&(address, size, writable)| Buffer { address, size, writable }).collect();
        self.ring.offer(0, &buffers);
        self.take_offered(RESPONSE_SIZE)
    }

    /// Takes the chain that is offered, and at most `writable` bytes for the answer.
    fn take_offered(&mut self, writable: usize) -> Chain {
        let chain = self.mem.transport.pop(self.memory.view(), 0, REQUEST_SIZE, writable);
        chain.expect("a chain was offered")
    }
}

/// The buffers of a circle count once each. Their sum is the measure, so that it is seen where the circle ended.
#[test]
fn a_circle_is_over_when_each_descriptor_had_its_turn() {
    let mut rig = rig(4 * MIB);
    let (size, to) = (1_u32 << 26, rig.ring.place(0));
    // WRITE and NEXT, 0.
    rig.ring.fill(MIB, &[&to.to_le_bytes()[..], &size.to_le_bytes(), &[3, 0, 0, 0]].concat());
    rig.ring.offer_head(0);
    let chain = rig.take_offered(usize::MAX);
    assert_eq!(chain.room(), usize::from(Ring::SIZE) << 26);
}

/// A guest decides how long its buffers are. The device copies no more of them than it looks at.
#[test]
fn no_more_of_a_chain_is_taken_than_the_device_needs() {
    let mut rig = rig(4 * MIB);
    let (from, to) = (rig.ring.place(0), rig.ring.place(8));
    let chain = rig.take(&[(from, 20, false), (from, 8192, false), (from, 8192, false)]);
    assert_eq!((chain.request().len(), chain.room()), (REQUEST_SIZE, 0));
    let chain = rig.take(&[(to, 4, true), (to, 8192, true), (to, 8192, true)]);
    assert_eq!((chain.request().len(), chain.room()), (0, RESPONSE_SIZE));
}

/// What comes after a part that cannot be read would stand in the wrong place.
#[test]
fn a_buffer_that_cannot_be_read_ends_the_request() {
    let mut rig = rig(4 * MIB);
    let from = rig.ring.place(0);
    rig.ring.fill(from, &[7; 24]);
    let chain = rig.take(&[(from, 8, false), (HOLE_END, 8, false), (from, 8, false)]);
    assert_eq!(chain.request(), [7; 8]);
}

/// virtio 1.3, section 2.7.5.2.
#[test]
fn a_chain_has_less_than_4_gib() {
    let mut rig = rig(4 * MIB);
    let (from, to) = (rig.ring.place(0), rig.ring.place(8));
    let most = u32::MAX - 24;
    for (large, small, room) in [(most - 1, 1, most), (most, 1, most), (4, most, 4)] {
        let buffers = [(from, 24, false), (to, large, true), (to, small, true)];
        rig.ring.offer(0, &buffers.map(|(address, size, writable)| Buffer { address, size, writable }));
        assert_eq!(rig.take_offered(usize::MAX).room(), room as usize);
    }
}

/// Every descriptor of the table is in the chain, and none beside it.
#[test]
fn a_chain_may_have_the_whole_table_and_no_more() {
    let mut rig = rig(4 * MIB);
    let (from, to) = (rig.ring.place(0), rig.ring.place(8));
    let mut buffers = [(from, 1, false); Ring::SIZE as usize];
    buffers[buffers.len() - 1] = (to, 10, true);
    let chain = rig.take(&buffers);
    assert_eq!((chain.request().len(), chain.room()), (buffers.len() - 1, RESPONSE_SIZE));
    // The last descriptor leads to the one after it. What lies there is the ring of the driver, which looks like a
    // buffer for an answer: 10 bytes, WRITE.
    rig.ring.fill(MIB + 12, &[1, 0, 15, 0]);
    rig.ring.fill(MIB + 16 * 15 + 12, &[1, 0, 16, 0]);
    rig.ring.fill(MIB + 16 * 16 + 8, &[10, 0, 0, 0, 2, 0]);
    rig.ring.offer_head(0);
    assert_eq!(rig.take_offered(RESPONSE_SIZE).room(), 0);
}
