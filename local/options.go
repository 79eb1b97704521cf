package local

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
)

// Engines that a local cluster can run.
const (
	EngineLlama = "llama" // llama.cpp with a real model
	EngineSim   = "sim"   // the engine simulator: no model, no memory
)

// Options are what a person can choose.
type Options struct {
	Regions   []string // short names out of use1, use2, usw2; default: all three
	Instances int      // per region; default 2
	Routers   int      // per region; default 2
	Engine    string   // EngineLlama (default) or EngineSim
	Model     string   // GGUF file; default: the small model that is fetched
	EngineURL string   // an OpenAI-compatible engine that runs already, http://host:port; default: none
	ModelName string   // as tenants ask for it; default: derived from the model
	Port      int      // of the tenant endpoint on loopback; 0: any free one

	// Accelerator has a stand-in for AWS Global Accelerator in front of the regions.
	Accelerator bool

	// Policy is how requests find their instance, of mrgc.yaml's models[].policy;
	// default: the default one.
	Policy string
	// Versions of the model, the present one first: it has all requests, and all
	// instances but the last one of each region for each other version. Default:
	// instances are of no version.
	Versions []string
	Sim      SimOptions

	// TenantClientCA is a PEM file of the CAs whose certificates tenants may show, of
	// mrgc.yaml's tenant_client_ca; default: none.
	TenantClientCA string

	// FleetDynamoDB is the URL of a DynamoDB Local that runs already, http://127.0.0.1:PORT:
	// enclaves then hold a key together, too, whose table is there; default: none.
	FleetDynamoDB string

	// Store is where the cluster's state is: StoreSQLite (default) or StoreDynamoDB.
	Store string
	// RegionNetworks are the networks in which regions' processes run: by a region's name,
	// a network namespace of ip-netns(8) and a loopback address that leads there from
	// everywhere, NAMESPACE@ADDRESS; default: that of this process.
	RegionNetworks map[string]string

	StateDir string // logs, state, env; default ".mrgc"
	ToolsDir string // fetched parts; default ".tools"
	BinDir   string // mrgc, mrgc-parent, mrgc-enclave; default: where this program lies

	// Wash has each parent start its enclave itself, so that it can wash its instance in
	// full: by `mrgc wash now`, and when mrgc.yaml's wash says.
	Wash bool
	// RestartEngine has engines run so that full washes can restart them, which they do
	// when mrgc.yaml's wash.restart_engine says so. It takes Wash.
	RestartEngine bool

	// AskOnce has the cluster send one sealed request when it is healthy.
	AskOnce bool
	Out     io.Writer // what a person reads

	cores int // of this machine
}

// allRegions are the mission's.
var allRegions = []string{"use1", "use2", "usw2"}

const (
	maxInstances     = 20
	maxRouters       = 4
	defaultModelName = "smollm2-135m-instruct"
	// fewCores is up to how many cores all instances share one llama.cpp.
	fewCores = 4
)

var notInModelName = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// complete checks the options and fills in their defaults.
func (o Options) complete() (Options, error) {
	if len(o.Regions) == 0 {
		o.Regions = allRegions
	}
	for i, r := range o.Regions {
		if !slices.Contains(allRegions, r) || slices.Contains(o.Regions[:i], r) {
			return o, fmt.Errorf("--regions %s: want some of use1, use2, usw2, each once", strings.Join(o.Regions, ","))
		}
	}
	o.Instances = cmp.Or(o.Instances, 2)
	if o.Instances < 1 || o.Instances > maxInstances {
		return o, fmt.Errorf("--instances %d: want 1 to %d per region", o.Instances, maxInstances)
	}
	o.Routers = cmp.Or(o.Routers, 2)
	if o.Routers < 1 || o.Routers > maxRouters {
		return o, fmt.Errorf("--routers %d: want 1 to %d per region", o.Routers, maxRouters)
	}
	o.Engine = cmp.Or(o.Engine, EngineLlama)
	if o.Engine != EngineLlama && o.Engine != EngineSim {
		return o, fmt.Errorf("--engine %s: want %s or %s", o.Engine, EngineLlama, EngineSim)
	}
	if err := errors.Join(o.completeModel(), o.completeSim(), o.checkFleet(), o.checkWash(), o.checkStores()); err != nil {
		return o, err
	}
	if o.Policy != "" {
		if _, err := routing.ParsePolicy(o.Policy); err != nil {
			return o, fmt.Errorf("--policy: %w", err)
		}
	}
	if err := o.checkVersions(); err != nil {
		return o, err
	}
	if o.Port < 0 || o.Port > 65535 {
		return o, fmt.Errorf("--port %d: want 0 to 65535", o.Port)
	}
	o.cores = cmp.Or(o.cores, runtime.NumCPU())
	o.StateDir = cmp.Or(o.StateDir, ".mrgc")
	o.ToolsDir = cmp.Or(o.ToolsDir, ".tools")
	if o.Out == nil {
		o.Out = io.Discard
	}
	return o, o.completePaths()
}

func (o *Options) completeModel() error {
	switch {
	case o.EngineURL != "" && o.Model != "":
		return fmt.Errorf("--engine-url and --model exclude each other: the engine at the URL has its model already")
	case o.EngineURL != "":
		u, err := url.Parse(o.EngineURL)
		if err != nil || u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return fmt.Errorf("--engine-url %s: want http://host:port", o.EngineURL)
		}
		if o.ModelName == "" {
			return fmt.Errorf("--engine-url needs --model-name: the name by which the engine knows its model")
		}
	case o.Model != "":
		if o.Engine == EngineSim {
			return fmt.Errorf("--model has no meaning with --engine sim")
		}
		info, err := os.Stat(o.Model)
		if err != nil {
			return fmt.Errorf("--model: %w", err)
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("--model %s: not a file", o.Model)
		}
		base := strings.TrimSuffix(filepath.Base(o.Model), filepath.Ext(o.Model))
		o.ModelName = cmp.Or(o.ModelName, strings.ToLower(notInModelName.ReplaceAllString(base, "-")))
	}
	o.ModelName = cmp.Or(o.ModelName, defaultModelName)
	return nil
}

func (o *Options) checkVersions() error {
	if len(o.Versions) > o.Instances {
		return fmt.Errorf("--versions %s: want at most one for each of the %d --instances of a region", strings.Join(o.Versions, ","), o.Instances)
	}
	for i, v := range o.Versions {
		if err := fleet.ValidateVersion(v); err != nil {
			return fmt.Errorf("--versions: %w", err)
		}
		if slices.Contains(o.Versions[:i], v) {
			return fmt.Errorf("--versions %s: want each once", strings.Join(o.Versions, ","))
		}
	}
	return nil
}

// versionOf is that of an instance, by its number within its region; empty: none.
func (o *Options) versionOf(number int) string {
	if len(o.Versions) == 0 {
		return ""
	}
	return o.Versions[max(0, number-(o.Instances-len(o.Versions)))]
}

func (o *Options) completePaths() error {
	if o.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("where this program lies: %w", err)
		}
		o.BinDir = filepath.Dir(self)
	}
	for _, path := range []*string{&o.StateDir, &o.ToolsDir, &o.BinDir, &o.Model, &o.TenantClientCA} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = absolute
	}
	for _, program := range []string{"mrgc", "mrgc-parent", "mrgc-enclave"} {
		if _, err := os.Stat(filepath.Join(o.BinDir, program)); err != nil {
			return fmt.Errorf("%s is not beside mrgc in %s: run `make build`", program, o.BinDir)
		}
	}
	return nil
}

// sharesEngine says whether all instances use one llama.cpp: two of them on few
// cores would only slow each other down. Where instances are washed, each needs one
// of its own: a guard that shares one does not know how to have it forget.
func (o *Options) sharesEngine() bool {
	return o.Engine == EngineLlama && o.cores <= fewCores && !o.Wash
}
