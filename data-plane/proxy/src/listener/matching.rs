//! Which filter chain a connection gets.

use culvert_model::listener::FilterChainMatch;

#[derive(Debug)]
pub(super) struct ChainIndex {}

impl ChainIndex {
    pub(super) fn compile<'a>(matches: impl Iterator<Item = &'a FilterChainMatch>) -> Self {
        let _ = matches;
        Self {}
    }
}
