//! Where a connection manager finds the route table of a request: in one place, or in that of the request's scope.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use culvert_http::RequestHead;
use culvert_model::Name;
use culvert_model::http::RouteSource;
use culvert_model::route::RouteConfiguration;
use culvert_model::scope::{KeyPart, Scope, ScopeRoutes, Scopes};

use crate::listener::{CompileError, inline_routes};
use crate::routes::{RouteSlot, ScopeSlot, ScopeTable, Scoped};
use crate::worker::{PinnedTable, Process, Worker, WorkerRoutes};

/// Where a request's route table is found.
#[derive(Debug)]
pub(crate) enum Routing {
    /// In one place for all requests.
    One(Arc<RouteSlot>),
    /// In the place of the scope whose key its fields make.
    Scoped { key: Vec<KeyPart>, scopes: Arc<ScopeSlot> },
}

impl Routing {
    pub(crate) fn compile(source: &RouteSource, process: &Process) -> Result<Self, CompileError> {
        let inline = |routes: &Arc<RouteConfiguration>| -> Result<_, CompileError> {
            let table = inline_routes(routes, process)?;
            let slot = RouteSlot::new(Arc::clone(&routes.name));
            drop(slot.publish(table));
            Ok(slot)
        };
        Ok(match source {
            RouteSource::Rds { name, .. } => Self::One(process.routes.slot(name)),
            RouteSource::Inline(routes) => Self::One(inline(routes)?),
            RouteSource::Scoped(scoped) => {
                let scopes = match &scoped.scopes {
                    Scopes::Discovered { .. } => Arc::clone(&process.scopes),
                    Scopes::Listed(list) => {
                        let compile = |scope: &Arc<Scope>| match &scope.routes {
                            ScopeRoutes::Inline(routes) => Ok((Arc::clone(scope), inline(routes)?)),
                            // The model refuses that in a list.
                            ScopeRoutes::Named(name) => Ok((Arc::clone(scope), process.routes.slot(name))),
                        };
                        let list = list.iter().map(compile).collect::<Result<Vec<_>, CompileError>>()?;
                        let slot = Arc::new(ScopeSlot::default());
                        slot.publish(ScopeTable::compile(list.into_iter()));
                        slot
                    }
                };
                Self::Scoped { key: scoped.key.clone(), scopes }
            }
        })
    }
}

/// Where one worker finds the route table of a request.
#[derive(Debug)]
pub(crate) enum WorkerRouting {
    One(Rc<WorkerRoutes>),
    Scoped(WorkerScopes),
}

impl WorkerRouting {
    pub(crate) fn new(routing: &Routing, worker: &Worker) -> Self {
        match routing {
            Routing::One(slot) => Self::One(worker.routes(slot)),
            Routing::Scoped { key, scopes } => Self::Scoped(WorkerScopes {
                key: key.clone(),
                cache: RefCell::new(arc_swap::Cache::new(Arc::clone(&scopes.table))),
            }),
        }
    }

    /// The table of the moment for a request. `None`: it has no scope, or its routes have not come.
    pub(crate) fn table(&self, worker: &Worker, head: &RequestHead) -> Option<Rc<PinnedTable>> {
        match self {
            Self::One(routes) => routes.table(),
            Self::Scoped(scopes) => scopes.scope(head, |scope| worker.routes(&scope.routes))?.table(),
        }
    }

    /// The scope of a request, if its routes are asked for on demand and have not come.
    pub(crate) fn lacking_scope(&self, head: &RequestHead) -> Option<Name> {
        let Self::Scoped(scopes) = self else { return None };
        scopes.scope(head, |scope| {
            let lacks = scope.on_demand && scope.routes.current().is_none();
            lacks.then(|| Arc::clone(&scope.name))
        })?
    }
}

type Table = Option<Arc<ScopeTable>>;

/// A scope slot as one worker sees it.
#[derive(Debug)]
pub(crate) struct WorkerScopes {
    key: Vec<KeyPart>,
    cache: RefCell<arc_swap::Cache<Arc<ArcSwapOption<ScopeTable>>, Table>>,
}

impl WorkerScopes {
    fn scope<T>(&self, head: &RequestHead, take: impl FnOnce(&Scoped) -> T) -> Option<T> {
        let mut cache = self.cache.borrow_mut();
        cache.load().as_ref()?.find(&self.key, head).map(take)
    }
}
