//! Inputs from a seed: parts of a corpus with changes, and random bytes.

pub struct Mutator {
    state: u64,
    longest: usize,
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Mutator {
    pub fn new(seed: u64, longest: usize, corpus: Vec<Vec<u8>>) -> Self {
        // What stands between spaces in text is a good part of another input.
        let words = corpus.iter().flat_map(|input| input.split(|byte| byte.is_ascii_whitespace()));
        let words = words.filter(|word| (1..24).contains(&word.len())).map(<[u8]>::to_vec).collect();
        Self { state: seed | 1, longest, corpus, words }
    }

    /// xorshift64*.
    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random() >> 33) as usize % bound.max(1)
    }

    pub fn next(&mut self) -> Vec<u8> {
        if self.below(4) == 0 {
            let length = self.below(self.longest);
            return (0..length).map(|_| self.random() as u8).collect();
        }
        let index = self.below(self.corpus.len());
        let mut input = self.corpus[index].clone();
        for _ in 0..1 + self.below(8) {
            self.change(&mut input);
        }
        input.truncate(self.longest);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let rest = input.len() - at;
        match self.below(7) {
            0 if rest > 0 => input[at] ^= 1 << self.below(8),
            1 if rest > 0 => input[at] = self.random() as u8,
            2 => input.insert(at, self.random() as u8),
            3 => {
                let count = self.below(rest.min(16) + 1);
                input.drain(at..at + count);
            }
            4 if rest >= 8 => {
                let edge = [0, u64::MAX, 1 << 63, 1 << 32, u64::MAX >> 1, 0x1000][self.below(6)];
                let width = 1 << self.below(4);
                input[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
            }
            5 if !self.words.is_empty() => {
                let word = self.below(self.words.len());
                let word = self.words[word].clone();
                input.splice(at..at, [b" ", word.as_slice(), b" "].concat());
            }
            _ => {
                let other = self.below(self.corpus.len());
                let from = self.below(self.corpus[other].len() + 1);
                let part = self.corpus[other][from..].to_vec();
                input.truncate(at);
                input.extend(part);
            }
        }
    }
}
