"""The figures to stand beside and the targets to reach.

SPIRE 1.16-dev and our throw-away prototypes were measured on two cores, November 2026. The prototypes had neither
store nor issuing behind their streams, so their latency and fan-out figures are no bound.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row of the table. Values are in `unit`; None where nothing was measured or is asked. Smaller is better, with
    `more` greater.

    A `ratio` is measured against a floor in the same run: missing its `must` makes the benchmark fail. Other figures
    depend on the machine and are only printed beside their target.
    """

    key: str
    what: str
    unit: str
    spire: float | None = None
    prototype: float | None = None
    must: float | None = None
    aim: float | None = None
    ratio: bool = False
    more: bool = False

    def reached(self, value: float) -> bool:
        """Whether a value is as good as it must be."""
        return self.must is None or (value >= self.must if self.more else value <= self.must)

    @property
    def bound(self) -> str:
        """What must be reached, in words."""
        return "" if self.must is None else f"at {'least' if self.more else 'most'} {self.must:g}"


FIGURES = (
    Figure("batch_cpu_us", "server CPU per SVID, BatchNewX509SVID, 500 CSRs a call", "µs", 430, 205),
    Figure("batch_cpu_floors", "the same in floors F (one P-256 verify + one sign)", "F", 5.1, 2.45, 2.2, 1.7, True),
    Figure("batch_wall_us", "the same, wall, two callers", "µs", 213, 143, 180, 140),
    Figure("jwt_cpu_us", "server CPU per NewJWTSVID, four callers", "µs", 503, None, 800, 500),
    Figure("jwt_p50_ms", "NewJWTSVID, four callers, p50", "ms", 1.2),
    Figure("attach_p50_ms", "attach → first X.509-SVID, p50", "ms", 1.39, 1.27, 2.5, 1.3),
    Figure("attach_p99_ms", "attach → first X.509-SVID, p99", "ms", 6.4, 3.4, 10, 4),
    Figure("latency_p50_ms", "entry created → SVID on an open stream, p50", "ms", 4780, 1.7, 40, 10),
    Figure("latency_p99_ms", "entry created → SVID on an open stream, p99", "ms", 5810, 3.9, 200, 40),
    Figure("latency_100k_p99_ms", "the same with 100,000 entries in the store, p99", "ms", None, None, 400, 60),
    Figure("fanout_ms", "1,000 streams: entry created → last updated, p50", "ms", 3420, 54, 500, 150),
    Figure("create_1000_s", "BatchCreateEntry of 1,000", "s", 1.5, None, 1, 0.3),
    Figure("agent_rss_idle_mb", "agent RSS, idle", "MB", 63, None, 75, 60),
    Figure("agent_rss_entries_mb", "agent RSS, 1,000 entries", "MB", 153, None, 110, 80),
    Figure("agent_rss_streams_mb", "agent RSS, 1,000 streams", "MB", 164, 94, 160, 110),
    Figure("server_rss_mb", "server RSS, idle", "MB", 104, None, 120, 90),
    Figure("server_rss_100k_mb", "server RSS, 100,000 entries", "MB", None, None, 400, 250),
    Figure("fleet_idle_percent", "idle CPU of the server, 200 agents attached", "% of a core", None, None, 2, 0.5),
    Figure("idle_server_percent", "idle CPU of the server, one agent", "% of a core", 0.8),
    Figure("idle_agent_percent", "idle CPU of the agent", "% of a core", 0.35),
    Figure("transit_batch_ms", "BatchNewX509SVID, 500 CSRs, key in OpenBao's Transit, wall", "ms"),
    Figure("transit_ratio", "the same in OpenBao's own time for 500 signatures", "×", None, None, 2, 1.2, True),
    Figure("softhsm_batch_ms", "BatchNewX509SVID, 500 CSRs, key in SoftHSM, wall", "ms"),
    Figure("softhsm_ratio", "the same in bare loops of 500 signatures", "×", None, None, 1.5, 1.1, True),
    Figure(
        "below_mount_ratio",
        "SVIDs per server CPU second below a PKI mount's root, of those below a root on disk",
        "×",
        must=0.95,
        aim=1.0,
        ratio=True,
        more=True,
    ),
    Figure("taint_s", "taint → last of 1,000 SVIDs replaced, 100 agents", "s", None, None, 10, 3),
    Figure("status_s", "`caadmin ca status` as a process, 1,000 agents, 10,000 SVIDs", "s", None, None, 1, 0.3),
    Figure("status_call_ms", "its call alone", "ms"),
    Figure("status_first_call_ms", "the first such call, which reads what was issued", "ms"),
    Figure("unix_attest_p50_ms", "`unix` attestation of a workload, p50", "ms", None, None, 1, 0.3),
    Figure("k8s_warm_p50_ms", "`k8s` attestation, the kubelet's answer at hand, p50", "ms", None, None, 2, 0.5),
    Figure("k8s_cold_p50_ms", "the same, the kubelet of 110 pods asked, p50", "ms", None, None, 20, 8),
    Figure("k8s_psat_cpu_ms", "server CPU per k8s_psat attestation, without the API server's", "ms", None, None, 10, 4),
    Figure(
        "controller_whole_s", "controller: 1,000 pods × 10 ClusterSPIFFEIDs, full reconcile", "s", None, None, 5, 1.5
    ),
    Figure("controller_change_p50_ms", "one pod changed → entry → SVID on its stream, p50", "ms"),
    Figure("controller_change_p99_ms", "the same, p99", "ms", None, None, 1000, 300),
    Figure("pod_certificate_cpu_ms", "PodCertificateRequest, our CPU each, 16 at a time", "ms", None, None, 5, 2),
    Figure("pod_certificate_server_cpu_ms", "of that the server's", "ms"),
    Figure("policy_floor_us", "one Python call and one look into a dict of 10,000, p50", "µs"),
    Figure("policy_mesh_us", "a policy decision, 10,000 rules in the mesh, p50", "µs", None, None, 6, 3),
    Figure("policy_mesh_ratio", "the same in what 10 rules take", "×", None, None, 1.5, 1.2, True),
    Figure("policy_gateway_us", "a policy decision, 10,000 rules on one target, p50", "µs", None, None, 10, 5),
    Figure("policy_gateway_ratio", "the same in what 10 rules take", "×", None, None, 2, None, True),
    Figure("policy_mesh_1k_us", "a policy decision, 1,000 rules in the mesh, p50", "µs"),
    Figure("policy_mesh_1k_cedar_us", "the same by Cedar (cedarpy)", "µs"),
    Figure("policy_mesh_1k_casbin_us", "the same by pycasbin", "µs"),
    Figure("policy_gateway_1k_us", "a policy decision, 1,000 rules on one target, p50", "µs"),
    Figure("policy_gateway_1k_cedar_us", "the same by Cedar (cedarpy)", "µs"),
    Figure("policy_gateway_1k_casbin_us", "the same by pycasbin", "µs"),
    Figure("policy_mesh_compile_ms", "10,000 rules in the mesh compiled, CPU", "ms", None, None, 500, 150),
    Figure("policy_mesh_apply_ms", "one of them changed, CPU", "ms", None, None, 20, 5),
    Figure("policy_gateway_compile_ms", "10,000 rules on one target compiled, CPU", "ms", None, None, 500, 150),
    Figure("policy_gateway_apply_ms", "one of them changed, CPU", "ms", None, None, 20, 5),
    Figure(
        "policy_mesh_diff_ms", "semantic diff, 10,000 rules in the mesh, one changed, CPU", "ms", None, None, 50, 15
    ),
    Figure("policy_mesh_diff_worst_ms", "the dearest of these changes", "ms"),
    Figure("policy_gateway_diff_ms", "the same, all rules on one target", "ms", None, None, 50, 15),
    Figure("policy_gateway_diff_worst_ms", "the dearest of these changes, and the first of them", "ms", must=50),
    Figure("policy_mesh_invariant_ms", "an invariant over 1,000 rules and all targets, CPU", "ms", None, None, 20, 5),
    Figure("policy_gateway_invariant_ms", "the same, all rules on one target", "ms", None, None, 20, 5),
    Figure("policy_explain_ms", "a decision explained, 1,000 rules on one target, p50", "ms", None, None, 5, 1),
    Figure("policy_mesh_mb", "memory of 10,000 rules in the mesh", "MB", None, None, 80, 25),
    Figure("policy_filter_1k_ms", "a proxy's filter, 1,000 rules on one target, CPU", "ms", None, None, None, 100),
    Figure("policy_filter_1k_change_ms", "one of them changed, CPU", "ms"),
    Figure("policy_filter_10k_ms", "a proxy's filter, 10,000 rules on one target, CPU", "ms", None, None, None, 1000),
    Figure("policy_filter_10k_change_ms", "one of them changed, CPU", "ms"),
    Figure("policy_envoy_none_us", "a request to a real Envoy without policies, p50", "µs"),
    Figure("policy_envoy_tree_1k_added_us", "1,000 rules on one target, pushed: added, p50", "µs"),
    Figure("policy_envoy_tree_1k_guarded_added_us", "the same where paths are not normalized", "µs"),
    Figure("policy_envoy_tree_10k_mesh_added_us", "10,000 rules in the mesh, pushed: added, p50", "µs"),
    Figure("policy_envoy_rules_1k_added_us", "1,000 rules in Istio's encoding: added, p50", "µs"),
    Figure("policy_envoy_ext_authz_added_us", "a trivial ext_authz in Python: added, p50", "µs"),
    Figure(
        "ext_authz_checks_per_s", "ext_authz checks answered by one agent", "/s", None, None, 1_500, 2_500, more=True
    ),
    Figure("ext_authz_check_cpu_us", "the agent's CPU for one of them", "µs", None, None, 667, 400),
    Figure("ext_authz_bare_per_s", "a gRPC server of the same library that answers at once, by turns", "/s", more=True),
    Figure("ext_authz_bare_cpu_us", "its CPU for one answer", "µs"),
    Figure("policy_tree_1k_percent", "1,000 pushed rules, of ext_authz", "%", None, None, 5, 1, True),
    Figure("policy_tree_10k_mesh_percent", "10,000 pushed in the mesh, of ext_authz", "%", None, None, 2),
    Figure(
        "policy_push_ms",
        "policies written → last of 100 proxies on a node acknowledged, p50",
        "ms",
        None,
        None,
        2000,
        500,
    ),
    Figure("policy_push_worst_ms", "the same, the slowest write", "ms"),
    Figure("policy_gateway_mb", "memory of 10,000 rules on one target", "MB", None, None, 80, 25),
    Figure("start_s", "server and agent healthy after start", "s", 0.64, None, 2, 1.2),
)
