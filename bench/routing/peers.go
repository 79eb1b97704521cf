package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/envoy"
)

// contender is something that tenants' requests can be routed by.
type contender struct {
	name   string
	ours   bool
	absent string // why it cannot take part on this machine, if so
	// start runs it before engines, with its files in dir. What it says
	// otherwise goes to its log there.
	start func(ctx context.Context, dir string, e *engines) (*rig.Running, error)
}

// peers are those that run on one machine. Where they learn of health by answers
// they are told to; cache-aware ones run as they come, and once more with
// thresholds that fit few engines of few slots.
func peers(tools string) []contender {
	sglang, vllm := "sglang_router", "vllm_router"
	haproxy := contender{name: "HAProxy leastconn", start: haproxyPeer}
	if _, err := exec.LookPath("haproxy"); err != nil {
		haproxy.absent = "haproxy is not installed (Debian: apt-get install haproxy)"
	}
	return []contender{
		{name: "Envoy round robin", start: envoyPeer(tools, "ROUND_ROBIN")},
		{name: "Envoy least request", start: envoyPeer(tools, "LEAST_REQUEST")},
		haproxy,
		{name: "sglang-router cache_aware", start: pythonPeer(tools, sglang, "--policy", "cache_aware")},
		{name: "sglang-router cache_aware, tuned", start: pythonPeer(tools, sglang, "--policy", "cache_aware",
			"--cache-threshold", "0.5", "--balance-abs-threshold", "8", "--balance-rel-threshold", "1.5")},
		{name: "vllm-router cache_aware", start: pythonPeer(tools, vllm, "--policy", "cache_aware")},
		{name: "vllm-router cache_aware, tuned", start: pythonPeer(tools, vllm, "--policy", "cache_aware",
			"--cache-threshold", "0.5", "--balance-abs-threshold", "8", "--balance-rel-threshold", "1.5")},
		{name: "vllm-router power_of_two", start: pythonPeer(tools, vllm, "--policy", "power_of_two")},
	}
}

// plainFront speaks HTTP/1.1 with as many connections as there are requests.
func plainFront(port string) rig.Front {
	return rig.Front{
		URL:    "http://127.0.0.1:" + port + "/v1/chat/completions",
		Client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 512}},
	}
}

// pythonPeer runs a router that comes as a Python package.
func pythonPeer(tools, module string, policy ...string) func(context.Context, string, *engines) (*rig.Running, error) {
	return func(ctx context.Context, dir string, e *engines) (*rig.Running, error) {
		port, metrics := rig.FreePort(), rig.FreePort()
		args := append([]string{
			"-m", module + ".launch_router", "--host", "127.0.0.1", "--port", port,
			"--prometheus-host", "127.0.0.1", "--prometheus-port", metrics,
			"--health-check-interval-secs", "1", "--worker-startup-check-interval", "1", "--worker-urls",
		}, e.urls()...)
		cmd := exec.CommandContext(ctx, "python3", append(args, policy...)...)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(tools, "peers"), "PYTHONDONTWRITEBYTECODE=1")
		return launch(ctx, dir, plainFront(port), cmd)
	}
}

func haproxyPeer(ctx context.Context, dir string, e *engines) (*rig.Running, error) {
	port := rig.FreePort()
	var config strings.Builder
	fmt.Fprintf(&config, `global
  maxconn 4096
defaults
  mode http
  option http-no-delay
  option redispatch
  retries 2
  retry-on conn-failure empty-response response-timeout 500 503
  timeout connect 1s
  timeout client 180s
  timeout server 180s
listen tenants
  bind 127.0.0.1:%s
  balance leastconn
  http-reuse always
  option httpchk GET /health
`, port)
	for i, address := range e.Plain {
		fmt.Fprintf(&config, "  server s%d %s check inter 1s observe layer7 error-limit 5 on-error mark-down\n", i, address)
	}
	path := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(path, []byte(config.String()), 0o600); err != nil {
		return nil, err
	}
	return launch(ctx, dir, plainFront(port), exec.CommandContext(ctx, "haproxy", "-db", "-f", path))
}

// envoyPeer runs Envoy as one would without a picker: its own load balancer,
// retries, and ejection of instances that fail.
func envoyPeer(tools, policy string) func(context.Context, string, *engines) (*rig.Running, error) {
	return func(ctx context.Context, dir string, e *engines) (*rig.Running, error) {
		port := rig.FreePort()
		type object = map[string]any
		type list = []any
		socket := func(address string) object {
			host, port, _ := net.SplitHostPort(address)
			return object{"socket_address": object{"address": host, "port_value": json.Number(port)}}
		}
		var endpoints list
		for _, address := range e.Plain {
			endpoints = append(endpoints, object{"endpoint": object{"address": socket(address)}})
		}
		config := object{"static_resources": object{
			"listeners": list{object{"name": "tenants", "address": socket("127.0.0.1:" + port), "filter_chains": list{object{"filters": list{object{
				"name": "envoy.filters.network.http_connection_manager",
				"typed_config": object{
					"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
					"stat_prefix": "tenants",
					"http_filters": list{object{"name": "envoy.filters.http.router", "typed_config": object{
						"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
					}}},
					"route_config": object{"virtual_hosts": list{object{"name": "all", "domains": list{"*"}, "routes": list{object{
						"match": object{"prefix": "/"},
						"route": object{"cluster": "engines", "timeout": "0s", "retry_policy": object{
							"retry_on": "connect-failure,refused-stream,reset,5xx", "num_retries": 2, "host_selection_retry_max_attempts": 3,
							"retry_host_predicate": list{object{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": object{
								"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
							}}},
						}},
					}}}}},
				},
			}}}}}},
			"clusters": list{object{
				"name": "engines", "type": "STATIC", "lb_policy": policy, "connect_timeout": "1s",
				"common_lb_config":  object{"healthy_panic_threshold": object{"value": 0}},
				"outlier_detection": object{"consecutive_5xx": 3, "interval": "1s", "base_ejection_time": "10s", "max_ejection_percent": 50},
				"circuit_breakers":  object{"thresholds": list{object{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096, "max_retries": 1024}}},
				"load_assignment":   object{"cluster_name": "engines", "endpoints": list{object{"lb_endpoints": endpoints}}},
			}},
		}}
		content, err := json.Marshal(config)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, "envoy.json")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, err
		}
		cmd := envoy.Command(rig.EnvoyBinary(tools), path)
		return launch(ctx, dir, plainFront(port), cmd)
	}
}

// launch starts processes and waits until requests come through.
func launch(ctx context.Context, dir string, f rig.Front, processes ...*exec.Cmd) (*rig.Running, error) {
	probe := request{messages: []message{{"user", "are you there?"}}, outputTokens: 1}
	return rig.Launch(ctx, dir, f, probe.sent(), processes...)
}
