package local

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/dsse"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
)

// counting draws 127.0.0.1:20001, 20002 and so on.
func counting() func() (string, error) {
	port := 20000
	return func() (string, error) {
		port++
		return fmt.Sprintf("127.0.0.1:%d", port), nil
	}
}

// planFor plans a cluster without touching the machine.
func planFor(change ...func(*Options)) *plan {
	GinkgoHelper()
	o := Options{
		Regions: []string{"use1", "usw2"}, Instances: 2, Routers: 2, Engine: EngineLlama, ModelName: "smol",
		StateDir: "/state", BinDir: "/bin", cores: 64,
	}
	for _, f := range change {
		f(&o)
	}
	p, err := newPlan(o, "/tmp/mrgc-1", "127.0.0.1:8400", counting())
	Expect(err).NotTo(HaveOccurred())
	p.envoy, p.llamaPath, p.modelFile = "/tools/envoy", "/tools/llama", "/tools/m.gguf"
	return p
}

// grants hands out tokens that tests can recognise.
type grants struct{ ids []identity.ID }

const secret = "secret-token-of-"

func (g *grants) grant(id identity.ID) (string, error) {
	g.ids = append(g.ids, id)
	return secret + id.String(), nil
}

func children(p *plan) map[string]process {
	GinkgoHelper()
	all, err := p.processes((&grants{}).grant)
	Expect(err).NotTo(HaveOccurred())
	byName := map[string]process{}
	for _, child := range all {
		Expect(byName).NotTo(HaveKey(child.name))
		byName[child.name] = child
	}
	return byName
}

func flagOf(p process, name string) string {
	GinkgoHelper()
	i := slices.Index(p.args, name)
	Expect(i).To(BeNumerically(">", 0), "%s has no %s", p.name, name)
	return p.args[i+1]
}

var _ = Describe("A plan", func() {
	It("has every part of every region", func() {
		byName := children(planFor())
		var names []string
		for name := range byName {
			names = append(names, name)
		}
		Expect(names).To(ConsistOf(
			"engine-0", "engine-1", "engine-2", "engine-3",
			"guard-use1-0", "guard-use1-1", "guard-usw2-0", "guard-usw2-1",
			"enclave-use1-0", "enclave-use1-1", "enclave-usw2-0", "enclave-usw2-1",
			"parent-use1-0", "parent-use1-1", "parent-usw2-0", "parent-usw2-1",
			"router-use1", "router-use1-1", "router-usw2", "router-usw2-1", "envoy-use1", "envoy-usw2", "connect",
		))
	})

	It("gives each address once", func() {
		p := planFor()
		var addresses []string
		for _, r := range p.regions {
			addresses = append(addresses, r.tenant, r.health, r.envoyAdmin)
			for _, router := range r.routers {
				addresses = append(addresses, router.grpc, router.http, router.admin)
			}
		}
		for _, in := range p.instances() {
			addresses = append(addresses, in.parent, in.guard, in.metrics, in.vsock, in.nsm)
		}
		Expect(addresses).NotTo(ContainElement(""))
		slices.Sort(addresses)
		Expect(slices.Compact(slices.Clone(addresses))).To(Equal(addresses))
	})

	It("spreads instances over zones", func() {
		p := planFor(func(o *Options) { o.Regions, o.Instances = []string{"use2"}, 4 })
		var zones []string
		for _, in := range p.instances() {
			Expect(in.aws).To(Equal("us-east-2"))
			zones = append(zones, in.zone)
		}
		Expect(zones).To(Equal([]string{"use2-az1", "use2-az2", "use2-az3", "use2-az1"}))
	})

	DescribeTable("shares an engine where two would be in each other's way", func(change func(*Options), engines int) {
		p := planFor(change)
		Expect(p.engines).To(HaveLen(engines))
		var sockets []string
		for _, e := range p.engines {
			sockets = append(sockets, e.socket)
		}
		for _, in := range p.instances() {
			Expect(sockets).To(ContainElement(strings.TrimPrefix(in.engine, "unix:")))
		}
	},
		Entry("a model on few cores", func(o *Options) { o.cores = 4 }, 1),
		Entry("a model on many cores", func(o *Options) { o.cores = 5 }, 4),
		Entry("a simulator on few cores", func(o *Options) { o.cores, o.Engine = 1, EngineSim }, 4),
	)

	It("starts no engine when one runs already", func() {
		p := planFor(func(o *Options) { o.EngineURL = "http://127.0.0.1:8000" })
		Expect(p.engines).To(BeEmpty())
		Expect(flagOf(children(p)["guard-use1-0"], "--upstream")).To(Equal("http://127.0.0.1:8000"))
	})

	It("gives engines what their kind takes", func() {
		Expect(children(planFor())["engine-0"].args).To(ContainElements("--model", "/tools/m.gguf", "--python-path", "/tools/llama"))
		Expect(children(planFor(func(o *Options) { o.Engine = EngineSim }))["engine-0"].args).NotTo(ContainElement("--model"))
	})

	It("gives a simulator what was chosen of it, and its own instance's faults", func() {
		byName := children(planFor(func(o *Options) {
			o.Engine = EngineSim
			o.Sim = SimOptions{Profile: "a100", Slots: 32, KVBlocks: 3650, Slow: map[string]string{"use1-1": "2"}, Fail: map[string]string{"usw2-0": "0.5"}}
			Expect(o.completeSim()).To(Succeed())
		}))
		for name, faults := range map[string][]string{
			"engine-0": nil, "engine-1": {"--slowness", "2"}, "engine-2": {"--fail-share", "0.5"}, "engine-3": nil,
		} {
			args := byName[name].args
			Expect(args[slices.Index(args, "--slots"):]).To(Equal(append([]string{"--slots", "32", "--profile", "a100-llama-8b", "--kv-blocks", "3650"}, faults...)), name)
		}
		Expect(flagOf(byName["parent-use1-0"], "-engine-slots")).To(Equal("32"))
	})

	It("puts no secret where other users can see it", func() {
		for _, child := range children(planFor()) {
			Expect(strings.Join(child.args, " ")).NotTo(ContainSubstring(secret), child.name)
		}
	})

	It("gives a part its own identity's token, and none to others", func() {
		byName := children(planFor())
		for name, id := range map[string]identity.ID{
			"guard-use1-1":   {Region: "use1", Instance: "use1-1", Role: identity.RoleGuard},
			"enclave-usw2-0": {Region: "usw2", Instance: "usw2-0", Role: identity.RoleEnclave},
			"parent-use1-0":  {Region: "use1", Instance: "use1-0", Role: identity.RoleParent},
			"router-usw2":    {Region: "usw2", Role: identity.RoleRouter},
			"router-usw2-1":  {Region: "usw2", Role: identity.RoleRouter},
		} {
			var tokens []string
			for _, variable := range byName[name].env {
				if strings.HasPrefix(variable, "MRGC_IDENTITY_TOKEN=") {
					tokens = append(tokens, variable)
				} else {
					Expect(name).To(HavePrefix("parent-"), "it gets %s, and no other part does: the credentials for KMS", variable)
				}
			}
			Expect(tokens).To(Equal([]string{"MRGC_IDENTITY_TOKEN=" + secret + id.String()}), name)
		}
		for _, name := range []string{"engine-0", "envoy-use1", "connect"} {
			Expect(byName[name].env).To(BeEmpty(), name)
		}
	})

	It("gives the tenant what a tenant has, and nothing else", func() {
		p := planFor()
		Expect(children(p)["connect"].args).To(Equal([]string{
			"/bin/mrgc", "connect", "--listen", "127.0.0.1:8400", "--ca", "/state/ca.pem", "--releases", "/state/releases.signed.json",
			"--releases-key", "/state/releases-signing.pub", "--trust-development-root", "/state/development-root.pem",
			"--endpoint", "https://" + p.regions[0].tenant, "--endpoint", "https://" + p.regions[1].tenant,
		}))
	})

	It("joins an instance's parts", func() {
		p := planFor()
		byName := children(p)
		enclave, parent, guard := byName["enclave-use1-0"], byName["parent-use1-0"], byName["guard-use1-0"]
		Expect(flagOf(parent, "-enclave")).To(Equal(flagOf(enclave, "-listen")))
		Expect(flagOf(parent, "-engine-relay")).To(Equal(flagOf(enclave, "-engine")))
		Expect(flagOf(parent, "-guard")).To(Equal(flagOf(guard, "--listen")))
		Expect(flagOf(guard, "--upstream")).To(Equal("unix:" + flagOf(byName["engine-0"], "--socket")))
		Expect(flagOf(parent, "-metrics-listen")).To(Equal(p.regions[0].instances[0].metrics))
		Expect(flagOf(enclave, "-mode")).To(Equal("process"))
	})

	It("joins a region's routers, and has them hear the others' evidence", func() {
		p := planFor(func(o *Options) { o.Routers = 3 })
		byName := children(p)
		for i, name := range []string{"router-use1", "router-use1-1", "router-use1-2"} {
			own := p.regions[0].routers[i]
			Expect(flagOf(byName[name], "--grpc-listen")).To(Equal(own.grpc))
			var others []string
			for j, r := range p.regions[0].routers {
				if j != i {
					others = append(others, "--peer", r.grpc)
				}
			}
			for _, r := range p.regions[1].routers {
				others = append(others, "--peer", "usw2="+r.grpc)
			}
			Expect(byName[name].args[len(byName[name].args)-10:]).To(Equal(others))
		}
		Expect(byName["envoy-use1"].after).To(Equal(p.regions[0].routers[0].grpc))
		alone := children(planFor(func(o *Options) { o.Routers, o.Regions = 1, []string{"use1"} }))
		Expect(alone["router-use1"].args).NotTo(ContainElement("--peer"))
	})

	It("stops what brings requests before what answers them", func() {
		byName := children(planFor())
		order := []string{"connect", "envoy-use1", "router-use1", "parent-use1-0", "enclave-use1-0", "guard-use1-0", "engine-0"}
		for i, name := range order[1:] {
			Expect(byName[name].rank).To(BeNumerically("<", byName[order[i]].rank), name)
		}
	})

	It("keeps sockets' paths short enough for a kernel", func() {
		o := Options{Regions: []string{"use1"}, Instances: maxInstances, Engine: EngineSim, ModelName: "m", BinDir: "/bin", StateDir: "/state"}
		p, err := newPlan(o, "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/mrgc-4294967295", "127.0.0.1:8400", counting()) // as on macOS
		Expect(err).NotTo(HaveOccurred())
		for _, in := range p.instances() {
			for _, socket := range []string{in.vsock + "_5001", in.nsm, strings.TrimPrefix(in.engine, "unix:"), p.caSocket} {
				Expect(len(socket)).To(BeNumerically("<", 104), socket)
			}
		}
	})

	It("says what a tenant's shell needs", func() {
		p := planFor()
		Expect(p.env("mrgc-dev-key")).To(Equal([]string{
			"export OPENAI_BASE_URL=http://127.0.0.1:8400/v1",
			"export OPENAI_API_KEY=mrgc-dev-key",
			"export MRGC_MODEL=smol",
			"export MRGC_ADMIN_USE1=http://" + p.regions[0].routers[0].admin,
			"export MRGC_ADMIN_USE1_1=http://" + p.regions[0].routers[1].admin,
			"export MRGC_ADMIN_USW2=http://" + p.regions[1].routers[0].admin,
			"export MRGC_ADMIN_USW2_1=http://" + p.regions[1].routers[1].admin,
			"export MRGC_ENVOY_ADMIN_USE1=http://" + p.regions[0].envoyAdmin,
			"export MRGC_ENVOY_ADMIN_USW2=http://" + p.regions[1].envoyAdmin,
			"export MRGC_METRICS_USE1_0=http://" + p.regions[0].instances[0].metrics + "/metrics",
			"export MRGC_METRICS_USE1_1=http://" + p.regions[0].instances[1].metrics + "/metrics",
			"export MRGC_METRICS_USW2_0=http://" + p.regions[1].instances[0].metrics + "/metrics",
			"export MRGC_METRICS_USW2_1=http://" + p.regions[1].instances[1].metrics + "/metrics",
			"export MRGC_ENDPOINTS=https://" + p.regions[0].tenant + ",https://" + p.regions[1].tenant,
			"export MRGC_CA='/state/ca.pem'",
			"export MRGC_RELEASES='/state/releases.json'",
			"export MRGC_DEVELOPMENT_ROOT='/state/development-root.pem'",
			"export MRGC_CONFIG='/state/mrgc.yaml'",
			"export MRGC_STORE='sqlite:" + p.store + "'",
		}))
		Expect(p.envFile()).To(Equal(filepath.Join("/state", "env")))
	})

	It("leaves a path one word for the shell", func() {
		for _, path := range []string{"/state", "/my state", "/it's $HOME `x` \\"} {
			said, err := exec.Command("/bin/sh", "-c", "printf %s "+shellQuote(path)).Output()
			Expect(err).NotTo(HaveOccurred())
			Expect(string(said)).To(Equal(path))
		}
	})

	It("writes a configuration that is valid", func() {
		parsed, err := config.Parse("mrgc.yaml", planFor().clusterConfig())
		Expect(err).NotTo(HaveOccurred())
		Expect(parsed.Regions).To(HaveLen(2))
		Expect(parsed.Models).To(HaveExactElements(HaveField("Name", "smol")))
		Expect(parsed.Tenants).To(BeEmpty())
	})

	It("signs a list of its one tenant, which holds no key", func() {
		p, now := planFor(), time.Now()
		key, err := credential.New(strings.NewReader(strings.Repeat("k", 32)), tenantName)
		Expect(err).NotTo(HaveOccurred())
		files, err := p.tenantFiles(&key, now)
		Expect(err).NotTo(HaveOccurred())
		keys, err := dsse.ParseVerificationKeys(files["/state/tenants-signing.pub"])
		Expect(err).NotTo(HaveOccurred())
		keeper, err := tenant.NewKeeper(keys...)
		Expect(err).NotTo(HaveOccurred())
		Expect(keeper.Offer(files["/state/tenants.signed.json"], now)).To(Succeed())
		_, err = keeper.Set().AdmitToEdge(tenantName, key.EdgeToken(), now)
		Expect(err).NotTo(HaveOccurred())
		_, err = keeper.Set().AdmitToEnclave(tenantName, key.EnclaveToken(), now)
		Expect(err).NotTo(HaveOccurred())
		for path, content := range files {
			for _, hidden := range []string{key.Text(), string(key.EdgeToken()), string(key.EnclaveToken())} {
				Expect(string(content)).NotTo(ContainSubstring(hidden), path)
			}
		}
		_, err = dsse.ParseSigningKey(files["/state/tenants-signing.key"])
		Expect(err).NotTo(HaveOccurred(), "`mrgc tenants sign` can go on from there")
		_, err = tenant.ParseList(files["/state/tenants.json"])
		Expect(err).NotTo(HaveOccurred())
	})

	It("writes down the policy that was chosen", func() {
		parsed, err := config.Parse("mrgc.yaml", planFor(func(o *Options) { o.Policy = "round-robin" }).clusterConfig())
		Expect(err).NotTo(HaveOccurred())
		Expect(parsed.Models).To(HaveExactElements(HaveField("Policy", routing.PolicyRoundRobin)))
	})

	It("gives each region's last instances to the new versions, and the present one all requests", func() {
		p := planFor(func(o *Options) { o.Instances, o.Versions = 4, []string{"1", "2", "3"} })
		byName := children(p)
		for i, version := range []string{"1", "1", "2", "3"} {
			for _, region := range []string{"use1", "usw2"} {
				Expect(flagOf(byName[fmt.Sprintf("parent-%s-%d", region, i)], "-models")).To(Equal("smol@" + version))
			}
		}
		parsed, err := config.Parse("mrgc.yaml", p.clusterConfig())
		Expect(err).NotTo(HaveOccurred())
		Expect(parsed.Splits()).To(Equal(map[string]routing.Split{"smol": {{Name: "1", Weight: 1000}, {Name: "2"}, {Name: "3"}}}))
		Expect(parsed.Models[0].AutoRollback).To(BeTrue())
		_, err = config.WithSplit("mrgc.yaml", p.clusterConfig(), "smol", routing.Split{{Name: "1", Weight: 900}, {Name: "2", Weight: 100}, {Name: "3"}})
		Expect(err).NotTo(HaveOccurred(), "`mrgc canary set` can edit it")
	})

	It("writes down whose certificates tenants may show", func() {
		parsed, err := config.Parse("mrgc.yaml", planFor(func(o *Options) { o.TenantClientCA = "/ca's/a \"b\".pem" }).clusterConfig())
		Expect(err).NotTo(HaveOccurred())
		Expect(parsed.TenantClientCA).To(Equal("/ca's/a \"b\".pem"))
	})

	It("fails when there is no port", func() {
		full := errors.New("no free port")
		for left := range 16 { // three for the region, six for its routers, six for its instances, one for KMS
			draw := counting()
			_, err := newPlan(planFor().options, "/tmp/mrgc-1", "127.0.0.1:8400", func() (string, error) {
				if left--; left < 0 {
					return "", full
				}
				return draw()
			})
			Expect(err).To(MatchError(full))
		}
	})

	It("fails when a part gets no identity", func() {
		refused := errors.New("refused")
		_, err := planFor().processes(func(identity.ID) (string, error) { return "", refused })
		Expect(err).To(MatchError(refused))
	})
})
