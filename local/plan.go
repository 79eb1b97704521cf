package local

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mrgc/mrgc/envoy"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
)

// Children are stopped from the highest rank down: first what brings requests,
// last what answers them.
const (
	rankStore = iota
	rankEngine
	rankGuard
	rankEnclave
	rankParent
	rankRouter
	rankEnvoy
	rankController // while there are doors to look at
	rankConnect
)

// region is one region's part of the plan.
type region struct {
	name, aws string

	tenant, health, envoyAdmin string       // Envoy's addresses
	routers                    []routerPart // the first is the one that Envoy prefers
	envoyIdentity, envoyConfig string       // files
	tenantCert, tenantKey      string
	instances                  []instance

	controller string // address of its controller's admin; empty: it has none
}

// routerPart is one router's part of the plan.
type routerPart struct {
	name              string // of its process
	grpc, http, admin string // addresses
}

// instance is one instance's part of the plan.
type instance struct {
	id, region, aws, zone string
	models                string // as its parent is told

	parent, guard, metrics string // addresses
	vsock                  string // Unix socket that stands for the enclave's vsock
	enclave                string // the same, for connections to it
	nsm                    string // Unix socket of its software NSM
	tpm                    string // and of its software NitroTPM
	engine                 string // engine's socket or URL
}

// engine is one engine that the plan starts.
type engine struct {
	id     string // of its instance
	socket string
}

// plan is everything that a start decides before it starts anything.
type plan struct {
	options   Options
	runDir    string // short path: Unix sockets lie there
	stateDir  string
	connect   string // tenant endpoint
	caSocket  string
	config    string // mrgc.yaml
	tenants   string // list of tenants, for `mrgc tenants`
	signed    string // the same, signed
	signing   string // the key that signs it: .key, and .pub that verifies
	caFile    string
	nsmRoot   string
	hosts     string // images of hosts on which engines may run
	releases  string
	manifest  string // the same, signed
	releasing string // the key that signs it: .key, and .pub that verifies
	store     string
	control   string // what controllers remember, where there are some
	kms       softwareKMS
	fleet     sharedFleet
	regions   []region
	engines   []engine // to start
	draw      func() (string, error)
	envoy     string // binary
	llamaPath string // Python path of the engine
	modelFile string

	accelerator softwareAccelerator
	dynamo      globalTables
}

// newPlan lays the cluster out. The run directory's path must be short: a Unix
// socket's path holds some 100 bytes.
func newPlan(o Options, runDir, connect string, draw func() (string, error)) (*plan, error) {
	p := &plan{
		options: o, runDir: runDir, stateDir: o.StateDir, connect: connect, draw: draw,
		caSocket: filepath.Join(runDir, "ca.sock"),
		config:   filepath.Join(o.StateDir, "mrgc.yaml"),
		tenants:  filepath.Join(o.StateDir, "tenants.json"),
		signed:   filepath.Join(o.StateDir, "tenants.signed.json"),
		signing:  filepath.Join(o.StateDir, "tenants-signing"),
		caFile:   filepath.Join(o.StateDir, "ca.pem"),
		nsmRoot:  filepath.Join(o.StateDir, "development-root.pem"),
		releases: filepath.Join(o.StateDir, "releases.json"),
		hosts:    filepath.Join(o.StateDir, "engine-hosts.json"),

		manifest:  filepath.Join(o.StateDir, "releases.signed.json"),
		releasing: filepath.Join(o.StateDir, "releases-signing"),

		store:   filepath.Join(o.StateDir, "state.db"),
		control: filepath.Join(o.StateDir, "control.db"),
	}
	for _, name := range o.Regions {
		r, err := p.region(name)
		if err != nil {
			return nil, err
		}
		p.regions = append(p.regions, r)
	}
	if err := errors.Join(p.planAccelerator(), p.planControllers(), p.planStores()); err != nil {
		return nil, err
	}
	var err error
	if p.kms, err = p.planKMS(); err != nil {
		return nil, err
	}
	p.fleet, err = p.planFleet()
	return p, err
}

func (p *plan) region(name string) (region, error) {
	r := region{
		name: name, aws: fleet.Region(name).AWS(),
		envoyIdentity: filepath.Join(p.runDir, name+"-envoy"),
		envoyConfig:   filepath.Join(p.runDir, name+"-envoy.json"),
		tenantCert:    filepath.Join(p.runDir, name+"-tenant.crt"),
		tenantKey:     filepath.Join(p.runDir, name+"-tenant.key"),
	}
	if err := p.drawAll(&r.tenant, &r.health, &r.envoyAdmin); err != nil {
		return region{}, err
	}
	for i := range p.options.Routers {
		part := routerPart{name: "router-" + name}
		if i > 0 {
			part.name += "-" + strconv.Itoa(i)
		}
		if err := p.drawAll(&part.grpc, &part.http, &part.admin); err != nil {
			return region{}, err
		}
		r.routers = append(r.routers, part)
	}
	for i := range p.options.Instances {
		in, err := p.instance(r, i)
		if err != nil {
			return region{}, err
		}
		r.instances = append(r.instances, in)
	}
	return r, nil
}

func (p *plan) instance(r region, i int) (instance, error) {
	id := instanceID(r.name, i)
	in := instance{
		id: id, region: r.name, aws: r.aws, zone: fmt.Sprintf("%s-az%d", r.name, i%3+1),
		vsock:   filepath.Join(p.runDir, id+".vsock"),
		enclave: filepath.Join(p.runDir, id+".vsock"),
		nsm:     filepath.Join(p.runDir, id+".nsm"),
		tpm:     filepath.Join(p.runDir, id+".tpm"),

		models: p.options.ModelName,
	}
	if p.options.Wash {
		in.enclave = filepath.Join(p.runDir, id+"-{place}.vsock") // two beside each other while one takes over
	}
	if version := p.options.versionOf(i); version != "" {
		in.models += "@" + version
	}
	if err := p.drawAll(&in.parent, &in.guard, &in.metrics); err != nil {
		return instance{}, err
	}
	in.engine = p.engineFor(id)
	return in, nil
}

// engineFor gives the engine of an instance, and notes it when it is one to
// start.
func (p *plan) engineFor(id string) string {
	if p.options.EngineURL != "" {
		return p.options.EngineURL
	}
	e := engine{id: id, socket: filepath.Join(p.runDir, id+".engine")}
	if p.options.sharesEngine() {
		e = engine{id: "shared", socket: filepath.Join(p.runDir, "shared.engine")}
	}
	if !slices.Contains(p.engines, e) {
		p.engines = append(p.engines, e)
	}
	return "unix:" + e.socket
}

func (p *plan) drawAll(into ...*string) error {
	for _, address := range into {
		var err error
		if *address, err = p.draw(); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) instances() []instance {
	var all []instance
	for _, r := range p.regions {
		all = append(all, r.instances...)
	}
	return all
}

// engineRelay is what the enclave dials to reach the engine's guard: where
// hybrid vsock puts the guest's connections to port 5001.
func (in *instance) engineRelay() string { return "unix:" + in.vsock + "_5001" }

// kmsRelay is what the enclave dials to reach KMS: port 5002.
func (in *instance) kmsRelay() string { return "unix:" + in.vsock + "_5002" }

// requests is the enclave's port 5000.
func (in *instance) requests() string { return "unix:" + in.enclave + ":5000" }

func (in *instance) identity(role identity.Role) identity.ID {
	return identity.ID{Region: in.region, Instance: in.id, Role: role}
}

// processes are the children, with a certificate token for each that needs one.
func (p *plan) processes(grant func(identity.ID) (string, error)) ([]process, error) {
	var all []process
	for i, e := range p.engines {
		all = append(all, p.engine(i, e))
	}
	add := func(make func(token string) process, id identity.ID) error {
		token, err := grant(id)
		if err != nil {
			return err
		}
		all = append(all, make("MRGC_IDENTITY_TOKEN="+token))
		return nil
	}
	for _, in := range p.instances() {
		if p.options.Wash {
			guardAndParent, err := p.washing(in, grant)
			if err != nil {
				return nil, err
			}
			all = append(all, guardAndParent...)
			continue
		}
		for _, part := range []struct {
			role identity.Role
			make func(instance, string) process
		}{{identity.RoleGuard, p.guard}, {identity.RoleEnclave, p.enclave}, {identity.RoleParent, p.parent}} {
			if err := add(func(token string) process { return part.make(in, token) }, in.identity(part.role)); err != nil {
				return nil, err
			}
		}
	}
	for _, r := range p.regions {
		id := identity.ID{Region: r.name, Role: identity.RoleRouter}
		for _, part := range r.routers {
			if err := add(func(token string) process { return p.router(r, part, token) }, id); err != nil {
				return nil, err
			}
		}
	}
	for _, r := range p.regions {
		all = append(all, process{
			name: "envoy-" + r.name, rank: rankEnvoy, args: envoy.Command(p.envoy, r.envoyConfig).Args,
			after: r.routers[0].grpc, // so that it has its configuration from the one that it prefers
		})
	}
	for _, r := range p.regions {
		if r.controller == "" {
			continue
		}
		id := identity.ID{Region: r.name, Role: identity.RoleController}
		if err := add(func(token string) process { return p.controller(r, token) }, id); err != nil {
			return nil, err
		}
	}
	return p.inNetworks(append(all, p.tenant())), nil
}

// auditLog is of one process, and goes on from start to start.
func (p *plan) auditLog(process string) string {
	return filepath.Join(p.stateDir, "audit", process+".log")
}

func (p *plan) bin(name string) string { return filepath.Join(p.options.BinDir, name) }

func (p *plan) engine(i int, e engine) process {
	args := []string{p.bin("mrgc"), "engine", "serve", "--kind", p.options.Engine, "--socket", e.socket, "--model-name", p.options.ModelName}
	if p.options.Engine == EngineLlama {
		args = append(args, "--python-path", p.llamaPath, "--model", p.modelFile, "--context-tokens", strconv.Itoa(contextTokens))
	} else {
		args = append(args, p.options.Sim.arguments(e.id)...)
	}
	if p.options.RestartEngine {
		args = append([]string{p.bin("mrgc"), "engine", "run", "--control", e.socket + ".control", "--"}, args...)
	}
	return process{name: "engine-" + strconv.Itoa(i), rank: rankEngine, args: args}
}

func (p *plan) guard(in instance, token string) process {
	var control []string
	if p.options.RestartEngine {
		control = []string{"--engine-control", in.engine + ".control"}
	}
	return process{name: "guard-" + in.id, rank: rankGuard, env: []string{token}, args: append([]string{
		p.bin("mrgc"), "engine", "guard", "--listen", in.guard, "--upstream", in.engine, "--identity", "unix:" + p.caSocket,
		"--nitro-tpm-attest", p.bin("mrgc") + " engine software-nitro-tpm-attest --socket " + in.tpm,
		"--cache", p.cache(),
	}, control...)}
}

// cache is how an engine's prefix cache keeps tenants apart. Slots have one guard:
// a llama.cpp that several instances share keeps no prompts, nor may an engine
// that is not known here.
func (p *plan) cache() string {
	switch {
	case p.options.EngineURL != "":
		return api.CacheNone
	case p.options.Engine == EngineSim:
		return api.CacheSalt
	case p.options.sharesEngine() && len(p.instances()) > 1:
		return api.CacheNone
	default:
		return api.CacheSlots
	}
}

func (p *plan) enclave(in instance, token string) process {
	return process{name: "enclave-" + in.id, rank: rankEnclave, env: []string{token}, args: append([]string{
		p.bin("mrgc-enclave"), "-listen", in.requests(), "-engine", in.engineRelay(), "-nsm", "unix:" + in.nsm,
		"-identity", "unix:" + p.caSocket, "-tenants-key", p.signing + ".pub", "-model", p.options.ModelName, "-mode", "process",
		"-engine-hosts", p.hosts, "-engine-host-root", p.nsmRoot,
		"-kms", in.kmsRelay(), "-kms-region", in.aws, "-kms-roots", p.caFile,
	}, p.enclaveFleet(in)...)}
}

func (p *plan) parent(in instance, token string) process {
	args := []string{
		p.bin("mrgc-parent"), "-config", p.config, "-zone", in.zone, "-listen", in.parent, "-enclave", in.requests(),
		"-engine-relay", in.engineRelay(), "-guard", in.guard, "-store", p.fleetStore(in.region),
		"-identity", "unix:" + p.caSocket, "-models", in.models, "-metrics-listen", in.metrics,
		"-tenants", p.signed, "-tenants-key", p.signing + ".pub",
		"-kms-relay", in.kmsRelay(), "-kms-host", p.kms.address, "-audit", p.auditLog("parent-" + in.id),
	}
	args = append(args, p.parentFleet(in)...)
	if p.options.Sim.Slots > 0 {
		args = append(args, "-engine-slots", strconv.Itoa(p.options.Sim.Slots))
	}
	return process{name: "parent-" + in.id, rank: rankParent, env: append(awsEnvironment(p.kms.cluster), token), args: args}
}

func (p *plan) router(r region, part routerPart, token string) process {
	args := []string{
		p.bin("mrgc"), "router", "--config", p.config, "--store", p.fleetStore(r.name), "--identity", "unix:" + p.caSocket,
		"--grpc-listen", part.grpc, "--http-listen", part.http, "--admin-listen", part.admin,
		"--tenant-address", r.tenant, "--health-address", r.health,
		"--tenant-cert", r.tenantCert, "--tenant-key", r.tenantKey,
		"--tenants", p.signed, "--tenants-key", p.signing + ".pub",
		"--releases", p.manifest, "--releases-key", p.releasing + ".pub", "--trust-development-root", p.nsmRoot,
		"--audit", p.auditLog(part.name),
	}
	args = append(args, p.routerDrains(r)...)
	for _, other := range r.routers {
		if other != part {
			args = append(args, "--peer", other.grpc)
		}
	}
	for _, elsewhere := range p.regions {
		if elsewhere.name == r.name {
			continue
		}
		for _, other := range elsewhere.routers {
			args = append(args, "--peer", elsewhere.name+"="+other.grpc)
		}
	}
	return process{name: part.name, rank: rankRouter, env: append(p.storeEnvironment(), token), args: args}
}

// tenant is the tenant's side: it is given what a tenant has, and nothing else.
func (p *plan) tenant() process {
	args := []string{
		p.bin("mrgc"), "connect", "--listen", p.connect, "--ca", p.caFile,
		"--releases", p.manifest, "--releases-key", p.releasing + ".pub", "--trust-development-root", p.nsmRoot,
	}
	for _, endpoint := range p.endpoints() {
		args = append(args, "--endpoint", endpoint)
	}
	return process{name: "connect", rank: rankConnect, args: args}
}

// endpoints are the regions' tenant URLs, the first preferred.
func (p *plan) endpoints() []string {
	var urls []string
	for _, r := range p.regions {
		urls = append(urls, "https://"+r.tenant)
	}
	return urls
}

// env is what .mrgc/env holds, and its first three lines what a person pastes
// for an OpenAI client. The four before the last two are for programs with a client
// of their own: whom it talks to, and what it trusts; the last two are for `mrgc
// canary` and `mrgc drain`.
func (p *plan) env(apiKey string) []string {
	lines := []string{
		"export OPENAI_BASE_URL=http://" + p.connect + "/v1",
		"export OPENAI_API_KEY=" + apiKey,
		"export MRGC_MODEL=" + p.options.ModelName,
	}
	for _, r := range p.regions {
		for i, router := range r.routers {
			name := "MRGC_ADMIN_" + strings.ToUpper(r.name)
			if i > 0 {
				name += "_" + strconv.Itoa(i)
			}
			lines = append(lines, "export "+name+"=http://"+router.admin)
		}
	}
	for _, r := range p.regions {
		lines = append(lines, "export MRGC_ENVOY_ADMIN_"+strings.ToUpper(r.name)+"=http://"+r.envoyAdmin)
	}
	for _, in := range p.instances() {
		lines = append(lines, fmt.Sprintf("export MRGC_METRICS_%s=http://%s/metrics", strings.ToUpper(strings.ReplaceAll(in.id, "-", "_")), in.metrics))
	}
	lines = append(lines, p.acceleratorEnv()...)
	lines = append(lines, p.stateEnv()...)
	lines = append(lines, p.storeEnv()...)
	return append(lines,
		"export MRGC_ENDPOINTS="+strings.Join(p.endpoints(), ","),
		"export MRGC_CA="+shellQuote(p.caFile),
		"export MRGC_RELEASES="+shellQuote(p.releases),
		"export MRGC_DEVELOPMENT_ROOT="+shellQuote(p.nsmRoot),
		"export MRGC_CONFIG="+shellQuote(p.config),
		"export MRGC_STORE="+shellQuote(p.fleetStore(p.anyStore())),
	)
}

// shellQuote keeps a path one word for a POSIX shell, whatever it holds.
func shellQuote(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }
