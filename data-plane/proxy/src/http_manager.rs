//! The HTTP connection manager.

use std::sync::Arc;

use culvert_model::http::HttpConnectionManager;

use crate::listener::CompileError;
use crate::worker::Process;

#[derive(Debug)]
pub(crate) struct HttpManager {}

impl HttpManager {
    pub(crate) fn compile(
        config: &Arc<HttpConnectionManager>,
        process: &Process,
        tls: bool,
    ) -> Result<Arc<Self>, CompileError> {
        let _ = (config, process, tls);
        todo!()
    }
}
