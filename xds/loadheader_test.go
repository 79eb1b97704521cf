package xds_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gexec"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/loadreport"
)

// object is a JSON object.
type object = map[string]any

// weighing starts an Envoy that balances over instances by what
// [loadreport.Header] says of each, takes the header off as our routes do, and
// has no other configuration. It gives Envoy's URL.
func weighing(instances ...string) string {
	GinkgoHelper()
	var endpoints []object
	for _, address := range instances {
		var host, port string
		_, err := fmt.Sscanf(strings.Replace(strings.TrimPrefix(address, "http://"), ":", " ", 1), "%s %s", &host, &port)
		Expect(err).NotTo(HaveOccurred())
		endpoints = append(endpoints, object{"endpoint": object{"address": object{"socket_address": object{"address": host, "port_value": json.Number(port)}}}})
	}
	typed := func(name, of string, fields object) object {
		fields["@type"] = "type.googleapis.com/" + of
		return object{"name": name, "typed_config": fields}
	}
	anyPort := object{"socket_address": object{"address": "127.0.0.1", "port_value": 0}}
	bootstrap, err := json.Marshal(object{
		"admin": object{"address": anyPort},
		"static_resources": object{
			"listeners": []object{{"name": "in", "address": anyPort, "filter_chains": []object{{"filters": []object{
				typed("hcm", "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", object{
					"stat_prefix": "in",
					"http_filters": []object{
						typed("router", "envoy.extensions.filters.http.router.v3.Router", object{}),
					},
					"route_config": object{
						"response_headers_to_remove": []string{strings.ToLower(loadreport.Header)},
						"virtual_hosts": []object{{
							"name": "all", "domains": []string{"*"},
							"routes": []object{{"match": object{"prefix": "/"}, "route": object{"cluster": "instances"}}},
						}},
					},
				}),
			}}}}},
			"clusters": []object{{
				"name":            "instances",
				"load_assignment": object{"cluster_name": "instances", "endpoints": []object{{"lb_endpoints": endpoints}}},
				"load_balancing_policy": object{"policies": []object{{"typed_extension_config": typed(
					"envoy.load_balancing_policies.client_side_weighted_round_robin",
					"envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
					object{"blackout_period": "0.01s", "weight_update_period": "0.1s"})}}},
			}},
		},
	})
	Expect(err).NotTo(HaveOccurred())
	dir := GinkgoT().TempDir()
	path := filepath.Join(dir, "bootstrap.json")
	Expect(os.WriteFile(path, bootstrap, 0o600)).To(Succeed())
	session, err := gexec.Start(envoy.Command(envoytest.Binary(GinkgoTB()), path, "--admin-address-path", filepath.Join(dir, "admin")), GinkgoWriter, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() {
		session.Signal(syscall.SIGTERM)
		Eventually(session).Should(gexec.Exit())
	})
	var url string
	Eventually(func() (err error) {
		url, err = listening(filepath.Join(dir, "admin"))
		return err
	}).Should(Succeed())
	return url
}

// listening asks the admin whose address is in a file for the URL of its
// Envoy's one listener.
func listening(adminFile string) (string, error) {
	admin, err := os.ReadFile(adminFile)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + string(admin) + "/listeners")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	_, address, ok := strings.Cut(strings.TrimSpace(string(text)), "::")
	if !ok {
		return "", fmt.Errorf("no listener in %q", text)
	}
	return "http://" + address, nil
}

var _ = Describe("An instance's load on its answers", func() {
	It("is read by Envoy, which sends more to where there is more room, before it is taken off", func() {
		var (
			mu     sync.Mutex
			served = map[string]int{}
		)
		answering := func(name string, load loadreport.Report) string {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				served[name]++
				mu.Unlock()
				w.Header().Set(loadreport.Header, load.Text())
			}))
			DeferCleanup(server.Close)
			return server.URL
		}
		gpu := loadreport.GPU{Utilization: 0.5, Memory: 0.5, TemperatureC: 60}
		url := weighing(
			answering("idle", loadreport.Report{Running: 1, Slots: 8, RequestsPerSecond: 10, KVCacheUse: 1e-9, GPU: gpu}),
			answering("full", loadreport.Report{Running: 8, Slots: 8, RequestsPerSecond: 10}),
		)
		client := &http.Client{Transport: &http.Transport{}}
		DeferCleanup(client.CloseIdleConnections)
		Eventually(func() float64 {
			mu.Lock()
			clear(served)
			mu.Unlock()
			for range 180 {
				resp, err := client.Get(url)
				Expect(err).NotTo(HaveOccurred())
				Expect(resp.Body.Close()).To(Succeed())
				Expect(resp.Header).NotTo(HaveKey(loadreport.Header))
			}
			mu.Lock()
			defer mu.Unlock()
			return float64(served["idle"]) / 180
		}).Should(BeNumerically("~", 8.0/9, 0.03), "weights are 80 and 10")
	})

	It("stays within the cluster: no tenant sees it", func() {
		r := startRegion(nil, "use1").serving()
		var asked atomic.Bool
		r.parents[0].Handle(func(w http.ResponseWriter, _ *http.Request) {
			asked.Store(true)
			w.Header().Set(loadreport.Header, (&loadreport.Report{Running: 1}).Text())
		})
		a := r.sealed()
		Expect(a.status).To(Equal(http.StatusOK))
		Expect(asked.Load()).To(BeTrue())
		Expect(a.header).NotTo(HaveKey(loadreport.Header))
	})
})
