mod grpc;

use culvert_xds::{NodeIdentity, Snapshot};

use super::*;
use crate::{Catalog, Placement};

/// A directory with files.
struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self { root: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn load(&self, options: Options) -> Load {
        load(self.root.path(), options, &Directory::default())
    }

    /// Findings without the folder's name.
    fn shown(&self, findings: &[Finding]) -> Vec<String> {
        let root = format!("{}/", self.root.path().display());
        findings.iter().map(|finding| finding.to_string().replace(&root, "")).collect()
    }

    fn errors(&self) -> Vec<String> {
        let load = self.load(Options { may_serve_secrets: true, strict: false });
        assert_eq!(load.directory.is_some(), load.errors.is_empty(), "a directory if and only if there is no error");
        self.shown(&load.errors)
    }

    fn good(&self) -> Arc<Directory> {
        let load = self.load(Options { may_serve_secrets: true, strict: false });
        load.directory.unwrap_or_else(|| panic!("{:#?}", load.errors))
    }
}

/// Each expectation is contained in the finding at its place.
fn check(found: &[String], expected: &[&str]) {
    assert_eq!(found.len(), expected.len(), "expected {expected:#?}, found {found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "expected {expected:?} in {found:?}");
    }
}

fn cluster(name: &str, more: &str) -> String {
    format!("{{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: {name}, type: STATIC{more}}}\n")
}

fn node(id: &str, cluster: &str, metadata: &[(&str, &str)]) -> NodeIdentity {
    let value = |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let fields = metadata.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
    NodeIdentity {
        id: id.into(),
        cluster: cluster.into(),
        metadata: Some(prost_types::Struct { fields }),
        ..NodeIdentity::default()
    }
}

fn names(placement: &Placement) -> Vec<String> {
    let clusters = placement.snapshot.of_type(type_url::CLUSTER);
    clusters.into_iter().flat_map(|set| set.resources().map(|one| one.name().to_string())).collect()
}

fn scoped(selector: &str, resource: &str) -> String {
    format!("selector: {selector}\nresources:\n- {resource}")
}

#[test]
fn a_file_holds_one_resource_a_list_or_a_stream() {
    let list = format!("- {}- {}", cluster("b", ""), cluster("c", ""));
    let stream = format!("{}---\n{}---\nresources: {}", cluster("d", ""), cluster("e", ""), cluster("f", ""));
    let json =
        r#"[{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "g", "connectTimeout": "1s"}]"#;
    let opaque = "{\"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource, name: x, resource: {\"@type\": example.com/un.Known, value: AAA=}}";
    let folder = Folder::new(&[
        ("a.yaml", &cluster("a", "")),
        ("deep/er/list.yml", &list),
        ("stream.yaml", &stream),
        ("j.json", json),
        ("opaque.yaml", opaque),
        (".hidden.yaml", "]"),
        ("README.md", "]"),
        ("empty.yaml", "# nothing\n"),
    ]);
    let directory = folder.good();
    let mut catalog = Catalog::new(Arc::clone(&directory));
    let placement = catalog.place(&NodeIdentity::default(), &Snapshot::default());
    assert_eq!(names(&placement), ["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(directory.len(), 8);
    let opaque = placement.snapshot.of_type("example.com/un.Known").unwrap().get("x").unwrap();
    assert_eq!(&opaque.value()[..], b"\0\0");
}

#[test]
fn every_mistake_of_every_file_is_reported_at_once() {
    let folder = Folder::new(&[
        ("a.yaml", "a: [\n"),
        ("b.yaml", &format!("{}---\n{}", cluster("x", ", lb_policy: BEST"), cluster("''", ""))),
        ("c.yaml", "selector: {nodeid: x}\nresources: []\nnode: envoy\nname: x\n"),
        ("d.json", "[1, {\"@type\": \"type.googleapis.com/google.protobuf.Empty\"}]"),
        ("e.yaml", "just text\n"),
        ("f.yaml", "selector: {cluster: 7, metadata: {a: [1]}}\n"),
    ]);
    check(
        &folder.errors(),
        &[
            "a.yaml:2:1: not YAML",
            "b.yaml:1:98: lb_policy: \"BEST\" is no value of",
            "b.yaml:3:70: name: must not be empty",
            "c.yaml:1:12: unknown condition \"nodeid\"",
            "c.yaml:3:7: expected culvert-proxy",
            "c.yaml:4:1: unknown key \"name\"",
            "d.json:1:2: expected a mapping with \"@type\", found the number 1",
            "d.json:1:5: a google.protobuf.Empty has no name",
            "e.yaml:1:1: expected a resource",
            "f.yaml:1:1: \"resources\" is missing",
            "f.yaml:1:21: expected a string that is not empty",
            "f.yaml:1:38: expected a string, a number",
        ],
    );
}

#[test]
fn the_more_specific_selector_wins() {
    let timeout = |seconds: u32| cluster("c", &format!(", connect_timeout: {seconds}s"));
    let folder = Folder::new(&[
        ("all.yaml", &timeout(1)),
        ("cluster.yaml", &scoped("{cluster: [k, l]}", &timeout(2))),
        ("metadata.yaml", &scoped("{metadata: {zone: z}}", &timeout(3))),
        ("id.yaml", &scoped("{node_id: n}", &timeout(4))),
        ("both.yaml", &scoped("{node_id: m, cluster: k}", &timeout(5))),
        ("m.yaml", &scoped("{node_id: m}", &timeout(6))),
    ]);
    let mut catalog = Catalog::new(folder.good());
    for (node, expected) in [
        (node("x", "x", &[]), 1),
        (node("x", "l", &[]), 2),
        (node("x", "k", &[("zone", "z"), ("more", "y")]), 3),
        (node("x", "k", &[("zone", "y")]), 2),
        (node("n", "k", &[("zone", "z")]), 4),
        (node("m", "k", &[]), 5),
        (node("m", "l", &[]), 6),
    ] {
        let placement = catalog.place(&node, &Snapshot::default());
        let resource = placement.snapshot.of_type(type_url::CLUSTER).unwrap().get("c").unwrap().any();
        let cluster: culvert_api::envoy::config::cluster::v3::Cluster = resource.unpack().unwrap();
        let found = cluster.connect_timeout.map(|timeout| timeout.seconds);
        assert_eq!(found, Some(expected), "of {node:?}");
    }
}

#[test]
fn nodes_with_equal_sets_share_a_snapshot_and_unchanged_resources_are_shared_over_loads() {
    let folder = Folder::new(&[("a.yaml", &cluster("a", "")), ("b.yaml", &scoped("{cluster: k}", &cluster("b", "")))]);
    let first = folder.good();
    let mut catalog = Catalog::new(Arc::clone(&first));
    let none = Snapshot::default();
    let (x, y) = (catalog.place(&node("x", "k", &[]), &none), catalog.place(&node("y", "k", &[]), &none));
    assert!(Arc::ptr_eq(&x.snapshot, &y.snapshot), "equal sets share a snapshot");
    let z = catalog.place(&node("z", "other", &[]), &none);
    assert_eq!((names(&x), names(&z)), (vec!["a".into(), "b".into()], vec!["a".into()]));

    folder.write("b.yaml", &scoped("{cluster: k}", &cluster("b", ", connect_timeout: 1s")));
    let second = load(folder.root.path(), Options::default(), &first).directory.unwrap();
    let pointers = |directory: &Directory| -> Vec<usize> {
        directory.resources().map(|(resource, ..)| Arc::as_ptr(resource).addr()).collect()
    };
    assert_eq!(pointers(&first)[0], pointers(&second)[0], "a did not change");
    assert_ne!(pointers(&first)[1], pointers(&second)[1], "b changed");
}

#[test]
fn ties_that_can_be_seen_statically_are_errors() {
    let tie = |a: &str, b: &str| {
        let folder =
            Folder::new(&[("a.yaml", &scoped(a, &cluster("c", ""))), ("b.yaml", &scoped(b, &cluster("c", "")))]);
        folder.errors()
    };
    for (a, b) in [
        ("{cluster: k}", "{cluster: [k, l]}"),
        ("{node_id: n}", "{node_id: n}"),
        ("{metadata: {a: b}}", "{metadata: {a: b, c: d}}"),
        ("{node_id: n, cluster: k}", "{cluster: k, node_id: [m, n]}"),
    ] {
        check(&tie(a, b), &["b.yaml:3:3: Cluster \"c\" for "]);
    }
    for (a, b) in [
        ("{cluster: k}", "{cluster: l}"),
        ("{metadata: {a: b}}", "{metadata: {a: c}}"),
        ("{metadata: {a: b}}", "{metadata: {c: d}}"),
        ("{node_id: n}", "{cluster: k}"),
    ] {
        check(&tie(a, b), &[]);
    }
    let folder = Folder::new(&[("a.yaml", &cluster("c", "")), ("b.yaml", &cluster("c", ""))]);
    check(&folder.errors(), &["b.yaml:1:1: Cluster \"c\" for all nodes stands in "]);
}

#[test]
fn a_tie_of_one_node_keeps_what_it_had() {
    let folder =
        Folder::new(&[("a.yaml", &scoped("{metadata: {a: b}}", &cluster("c", ""))), ("d.yaml", &cluster("d", ""))]);
    let tied = node("n", "k", &[("a", "b"), ("x", "y")]);
    let before = Catalog::new(folder.good()).place(&tied, &Snapshot::default());
    folder.write("b.yaml", &scoped("{metadata: {x: y}}", &cluster("c", ", connect_timeout: 1s")));
    let mut catalog = Catalog::new(folder.good());
    let after = catalog.place(&tied, &before.snapshot);
    assert_eq!(names(&after), ["c", "d"]);
    assert!(after.conflicts[0].kept && after.conflicts[0].origins.len() == 2, "{:?}", after.conflicts);
    let version = |placement: &Placement| placement.snapshot.of_type(type_url::CLUSTER).unwrap().version();
    assert_eq!(version(&before), version(&after), "the node keeps what it had");
    // A node that had nothing gets nothing of it; one that matches only one of them gets that.
    let fresh = catalog.place(&tied, &Snapshot::default());
    assert_eq!(names(&fresh), ["d"]);
    assert!(!fresh.conflicts[0].kept, "{:?}", fresh.conflicts);
    assert_eq!(names(&catalog.place(&node("m", "k", &[("a", "b")]), &Snapshot::default())), ["c", "d"]);
}

#[test]
fn secrets_need_a_selector_and_a_channel() {
    let secret = "{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: s,
    generic_secret: {secret: {inline_string: KEY}}}";
    let folder = Folder::new(&[("a.yaml", secret)]);
    check(&folder.errors(), &["a.yaml:1:1: Secret \"s\" is for all nodes"]);
    let folder = Folder::new(&[("a.yaml", &scoped("{cluster: k}", secret))]);
    check(&folder.errors(), &[]);
    let load = folder.load(Options::default());
    check(&folder.shown(&load.errors), &["a.yaml:3:3: Secret \"s\" would be served in plaintext"]);
}

#[test]
fn scopes_refer_to_routes_and_aggregates_to_clusters() {
    let scope = "{\"@type\": type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration, name: NAME,
  key: {fragments: [{string_key: NAME}]}, route_configuration_name: NAME}\n";
    let routes = "{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: there}\n";
    let aggregate =
        "{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: all, lb_policy: CLUSTER_PROVIDED,
  cluster_type: {name: envoy.clusters.aggregate, typed_config: {
    \"@type\": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a, b, c]}}}\n";
    let folder = Folder::new(&[
        ("a.yaml", &cluster("a", "")),
        ("c.yaml", &cluster("c", "")),
        ("g.yaml", aggregate),
        ("r.yaml", routes),
        ("s.yaml", &scope.replace("NAME", "there")),
        ("t.yaml", &scope.replace("NAME", "gone")),
    ]);
    let load = folder.load(Options { strict: true, ..Options::default() });
    let found: Vec<String> = folder.shown(&load.errors).into_iter().filter(|one| one.contains("there is no")).collect();
    let expected = [
        "cluster_type.typed_config.clusters[1]: there is no Cluster \"b\" for all nodes",
        "route_configuration_name: there is no RouteConfiguration \"gone\" for all nodes",
    ];
    check(&found, &expected);
}

#[test]
fn references_to_nothing_are_warnings_or_errors() {
    let routes = "{\"@type\": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [
  {name: v, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: gone}}, {match: {prefix: /}, route: {cluster: c}}]}]}";
    let folder = Folder::new(&[
        ("r.yaml", &scoped("{cluster: k}", routes)),
        ("c.yaml", &scoped("{cluster: l}", &cluster("c", ""))),
        ("d.yaml", &cluster("d", ", eds_cluster_config: {eds_config: {ads: {}}}").replace("STATIC", "EDS")),
    ]);
    let expected = [
        "d.yaml:1:84: eds_cluster_config: there is no ClusterLoadAssignment \"d\" for all nodes",
        "r.yaml:4:76: virtual_hosts[0].routes[0].route.cluster: there is no Cluster \"gone\" for cluster k",
        "r.yaml:4:122: virtual_hosts[0].routes[1].route.cluster: there is no Cluster \"c\" for cluster k, only for other nodes",
    ];
    let load = folder.load(Options::default());
    assert!(load.directory.is_some(), "warnings do not refuse a directory");
    check(&folder.shown(&load.warnings), &expected);
    let strict = folder.load(Options { strict: true, ..Options::default() });
    check(&folder.shown(&strict.errors), &expected);
}

/// Agents register as clusters that are there and that they join, not as those that share them: neither does a circle.
#[test]
fn clusters_that_share_agents_name_one_that_agents_join() {
    let sharing = |name: &str, registered_as: &str| {
        let config = format!(
            "{{'@type': type.googleapis.com/culvert.tunnel.v1.TunnelCluster, sources: [{{registered_as: {registered_as}}}]}}"
        );
        cluster(name, &format!(", cluster_type: {{name: t, typed_config: {config}}}")).replace("type: STATIC, ", "")
    };
    let folder = Folder::new(&[
        ("a.yaml", &sharing("a", "b")),
        ("b.yaml", &sharing("b", "a")),
        ("c.yaml", &sharing("c", "edge")),
        ("d.yaml", &sharing("d", "nothing")),
        ("e.yaml", &cluster("edge", "")),
    ]);
    let load = folder.load(Options::default());
    assert!(load.directory.is_some(), "warnings do not refuse a directory: {:?}", load.errors);
    let shown = folder.shown(&load.warnings);
    let path = "cluster_type.typed_config.sources[0].registered_as";
    let expected = [
        ("a.yaml", format!("{path}: Cluster \"b\" has agents that registered as another one")),
        ("b.yaml", format!("{path}: Cluster \"a\" has agents that registered as another one")),
        ("d.yaml", format!("{path}: there is no Cluster \"nothing\"")),
    ];
    assert_eq!(shown.len(), expected.len(), "{shown:#?}");
    for (seen, (file, text)) in shown.iter().zip(expected) {
        assert!(seen.starts_with(file) && seen.contains(&text), "expected {file} {text:?}, saw {seen:?}");
    }
    let strict = folder.load(Options { strict: true, ..Options::default() });
    assert_eq!(strict.errors.len(), 3, "{:?}", strict.errors);
    let own = Folder::new(&[("a.yaml", &format!("node: culvert-proxy\nresources: {}", sharing("a", "a")))]);
    check(&own.errors(), &["sources[0].registered_as: culvert-proxy refuses this: \"a\" is the cluster at hand"]);
}

#[test]
fn what_culvert_proxy_does_not_honour_is_an_error_for_its_nodes_only() {
    let odd = cluster("c", ", type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED").replace("type: STATIC, ", "");
    let folder = Folder::new(&[("a.yaml", &odd)]);
    let load = folder.load(Options::default());
    assert!(load.directory.is_some() && !load.warnings.is_empty(), "{load:?}");
    let folder = Folder::new(&[("a.yaml", &format!("node: culvert-proxy\nresources: {odd}"))]);
    let load = folder.load(Options::default());
    assert!(load.directory.is_none() && load.warnings.is_empty(), "{load:?}");
    assert!(load.errors[0].to_string().contains("culvert-proxy refuses this"), "{:?}", load.errors);
}

#[test]
fn a_directory_that_is_gone_is_an_error_and_one_that_is_empty_a_warning() {
    let load = load(Path::new("/nonexistent/culvert"), Options::default(), &Directory::default());
    assert!(load.errors[0].to_string().starts_with("/nonexistent/culvert: cannot be read"), "{:?}", load.errors);
    let empty = Folder::new(&[]).load(Options::default());
    assert!(empty.directory.is_some() && empty.warnings.len() == 1, "{empty:?}");
}

#[test]
fn a_mounted_volume_is_read_through_its_links_once() {
    let folder = Folder::new(&[("..2030/a.yaml", &cluster("a", ""))]);
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, folder.root.path().join(to)).unwrap();
    link("..2030", "..data");
    link("..data/a.yaml", "a.yaml");
    link(".", "loop");
    assert_eq!(folder.good().len(), 1, "one resource, by its link");
    link("nowhere", "b.yaml");
    check(&folder.errors(), &["b.yaml: cannot be read"]);
}

#[test]
fn a_mistake_made_many_times_does_not_fill_the_log() {
    let many = "- {x: 1}\n".repeat(5000);
    let errors = Folder::new(&[("a.yaml", &many)]).errors();
    assert_eq!(errors.len(), 1001);
    assert!(errors[1000].ends_with("and 4000 more"), "{}", errors[1000]);
}

#[test]
fn a_wrapper_gives_a_resource_aliases_and_a_ttl_and_nothing_that_is_not_honoured() {
    let wrapper = |name: &str, more: &str| {
        format!(
            "{{\"@type\": type.googleapis.com/envoy.service.discovery.v3.Resource, name: \"{name}\"{more}, \
              resource: {{\"@type\": type.googleapis.com/envoy.config.route.v3.VirtualHost, name: v, domains: [v]}}}}\n"
        )
    };
    let folder = Folder::new(&[("a.yaml", &wrapper("r/v", ", aliases: [r/w, r/x], ttl: 30s"))]);
    let first = folder.good();
    let (resource, ..) = first.at(0).unwrap();
    let aliases: Vec<&str> = resource.aliases().iter().map(|alias| &**alias).collect();
    assert_eq!((aliases, resource.ttl()), (vec!["r/w", "r/x"], Some(std::time::Duration::from_secs(30))));
    folder.write("a.yaml", &wrapper("r/v", ", aliases: [r/w], ttl: 30s"));
    let second = folder.good();
    assert_ne!(second.at(0).unwrap().0.version(), resource.version(), "what is said beside it is part of its version");

    folder.write("a.yaml", &wrapper("xdstp://a/t/x?b=1&a=2", ""));
    assert_eq!(&**folder.good().at(0).unwrap().0.name(), "xdstp://a/t/x?a=2&b=1", "names have one spelling");
    for (name, more, expected) in [
        ("r/v", ", ttl: 0.5s", "\"ttl\" is shorter than 1s"),
        ("r/v", ", aliases: [\"\"]", "an alias has 0 bytes"),
        ("r/v", ", version: v", "\"version\" is not honoured"),
        ("r/v", ", cache_control: {do_not_cache: true}", "\"cache_control\" is not honoured"),
        ("xdstp://a/t/*", "", "stands for a whole collection"),
    ] {
        folder.write("a.yaml", &wrapper(name, more));
        check(&folder.errors(), &[expected]);
    }
}
