//! What the watches have seen of one kind, over all watched namespaces.

use std::{fmt::Debug, sync::Arc};

use kube::{
    Resource,
    runtime::reflector::{ObjectRef, Store},
};

/// A read-only view of every object of a kind.
#[derive(Clone)]
pub struct Index<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    stores: Vec<Store<K>>,
}

impl<K> Index<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + 'static,
{
    /// A view over the stores of several watches, one for each namespace.
    #[must_use]
    pub fn new(stores: Vec<Store<K>>) -> Self {
        Self { stores }
    }

    /// The object of that name, if a watch has seen it.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let reference = ObjectRef::new(name).within(namespace);
        self.stores.iter().find_map(|store| store.get(&reference))
    }

    /// Every object.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.stores.iter().flat_map(Store::state).collect()
    }

    /// Waits until every watch has seen all there is.
    pub async fn ready(&self) {
        for store in &self.stores {
            // Fails only when the watch was dropped, and then the process is ending.
            let _ = store.wait_until_ready().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use kube::runtime::{reflector, watcher};
    use palisade_crds::Topic;

    use super::*;

    #[test]
    fn a_view_is_ready_when_every_namespace_was_listed() {
        let (first, mut lists_first) = reflector::store::<Topic>();
        let (second, mut lists_second) = reflector::store::<Topic>();
        let index = Index::new(vec![first, second]);
        assert!(index.ready().now_or_never().is_none());
        lists_first.apply_watcher_event(&watcher::Event::InitDone);
        assert!(index.ready().now_or_never().is_none());
        lists_second.apply_watcher_event(&watcher::Event::InitDone);
        assert!(index.ready().now_or_never().is_some());
    }
}
