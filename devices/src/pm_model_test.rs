//! The power management block against a model of it that is as simple as can be: one bool a bit.

use proptest::{collection::vec, prelude::*};

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Read { offset: usize, len: usize },
    Write { offset: usize, data: Vec<u8> },
    Raise(u8),
    Advance(u64),
    Tick,
    SaveAndRestore,
    BreakLine,
    MendLine,
}

fn op() -> impl Strategy<Value = Op> {
    // Half of the accesses go where something is.
    let register = prop::sample::select(vec![0x00, 0x02, 0x04, 0x05, 0x08, 0x20, 0x22, 0x30]);
    let offset = prop_oneof![register, 0..0x48usize, Just(0xffff)];
    let byte = prop_oneof![any::<u8>(), Just(0xff), Just(0x34), Just(1)];
    prop_oneof![
        4 => (offset.clone(), 0..=8usize).prop_map(|(offset, len)| Op::Read { offset, len }),
        8 => (offset, vec(byte, 0..=8)).prop_map(|(offset, data)| Op::Write { offset, data }),
        3 => (0..20u8).prop_map(Op::Raise),
        2 => prop_oneof![0..1000u64, 0..3 * EDGE_NS].prop_map(Op::Advance),
        1 => Just(Op::Tick),
        1 => Just(Op::SaveAndRestore),
        1 => Just(Op::BreakLine),
        1 => Just(Op::MendLine),
    ]
}

/// Bit `b` of port `p` is `ports[p][b]`; the timer is apart.
struct Model {
    ports: [[bool; 8]; 0x40],
    now: u64,
    edges: u64,
    requests: Vec<PowerRequest>,
}

impl Model {
    fn new() -> Self {
        let mut ports = [[false; 8]; 0x40];
        ports[4][0] = true;
        Self {
            ports,
            now: 0,
            edges: 0,
            requests: Vec::new(),
        }
    }

    fn ticks(&self) -> u64 {
        // 3,579,545 Hz and 10^9 ns have 5 in common.
        (u128::from(self.now) * 715_909 / 200_000_000) as u64
    }

    fn look_at_the_clock(&mut self) {
        let edges = self.ticks() / (1 << 31);
        self.ports[0][0] |= edges != self.edges;
        self.edges = edges;
    }

    fn read(&self, port: usize) -> u8 {
        match port {
            0x08..=0x0b => self.ticks().to_le_bytes()[port - 0x08],
            0x40.. => 0xff,
            _ => (0..8)
                .map(|bit| u8::from(self.ports[port][bit]) << bit)
                .sum(),
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let mut request = None;
        for (port, byte) in (offset..0x40).zip(data) {
            for bit in 0..8 {
                self.write_bit(port, bit, byte >> bit & 1 == 1);
            }
            // SLP_TYP 5, whose bits are 2 to 4 of the byte, and SLP_EN, bit 5.
            if port == 0x05 && byte & 0b11_1100 == 0b11_0100 {
                request = Some(PowerRequest::PowerOff);
            }
            if port == 0x30 && *byte == 1 {
                request = Some(PowerRequest::Reset);
            }
        }
        self.requests.extend(request);
    }

    fn write_bit(&mut self, port: usize, bit: usize, one: bool) {
        let stored = match (port, bit) {
            // Status: ones clear.
            (0x00 | 0x01 | 0x20 | 0x21, _) if one => {
                self.ports[port][bit] = false;
                return;
            }
            // TMR, GBL; power button, sleep button, RTC.
            (0x02, 0 | 5) | (0x03, 0..=2) => true,
            // BM_RLD, SLP_TYP.
            (0x04, 1) | (0x05, 2..=4) => true,
            (0x22 | 0x23, _) => true,
            _ => false,
        };
        if stored {
            self.ports[port][bit] = one;
        }
    }

    fn sci(&self) -> bool {
        let both = |status: usize, enable: usize| {
            (0..8).any(|bit| self.ports[status][bit] && self.ports[enable][bit])
        };
        both(0x00, 0x02) || both(0x01, 0x03) || both(0x20, 0x22) || both(0x21, 0x23)
    }
}

fn restore_into_a_new_bench(old: &Bench) -> Bench {
    // Another host's clock shows another time.
    let mut new = Bench::at(1_000_000_007);
    new.pm.restore(&old.pm.save()).unwrap();
    assert_eq!(new.line.calls(), 0);
    assert_eq!(new.pm.save(), old.pm.save());
    new.pm.sync_line().unwrap();
    new.requests.lock().unwrap().extend(old.requests());
    new
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_block_does_what_the_model_does(ops in vec(op(), 0..60)) {
        let mut model = Model::new();
        let mut bench = Bench::new();
        let mut broken = false;
        for op in ops {
            model.look_at_the_clock();
            match op {
                Op::Read { offset, len } => {
                    let expected: Vec<u8> = (offset..offset + len).map(|p| model.read(p)).collect();
                    prop_assert_eq!(bench.read(offset, len), expected);
                }
                Op::Write { offset, data } => {
                    bench.write(offset, &data);
                    model.write(offset, &data);
                }
                Op::Raise(gpe @ 16..) => {
                    prop_assert!(bench.pm.raise_gpe(gpe).is_err());
                    continue;
                }
                Op::Raise(gpe) => {
                    model.ports[0x20 + usize::from(gpe / 8)][usize::from(gpe % 8)] = true;
                    prop_assert!(bench.pm.raise_gpe(gpe).is_ok() || broken);
                }
                Op::Advance(ns) => {
                    bench.advance(ns);
                    model.now += ns;
                    // Nobody has looked at the clock yet: the line may lag behind.
                    continue;
                }
                Op::Tick => prop_assert!(bench.pm.tick().is_ok() || broken),
                Op::SaveAndRestore => {
                    bench = restore_into_a_new_bench(&bench);
                    broken = false;
                }
                Op::BreakLine => {
                    broken = true;
                    bench.line.break_it(true);
                }
                Op::MendLine => {
                    broken = false;
                    bench.line.break_it(false);
                    bench.pm.sync_line().unwrap();
                }
            }
            prop_assert!(broken || bench.line.level() == model.sci());
            prop_assert_eq!(&bench.requests(), &model.requests);
        }
        model.look_at_the_clock();
        let registers: Vec<u8> = (0..0x40).map(|port| model.read(port)).collect();
        prop_assert_eq!(bench.read(0, 0x40), registers);
    }
}
