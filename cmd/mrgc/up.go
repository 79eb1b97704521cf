package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/engine/sim/batching"
	"github.com/mrgc/mrgc/internal/parts"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/local"
)

func upCommand() *cobra.Command {
	options := local.Options{AskOnce: true}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster on this machine",
		Long: `Up runs a whole cluster on this machine: for each region an Envoy, two routers, and
instances of parent, enclave (a process here) and engine guard, around a real
model. It fetches what is missing, waits until all is healthy, sends one sealed
request, and prints what an OpenAI client needs; .mrgc/env has the same.
Ctrl-C stops everything.`,
		Example: `  mrgc up                                   three regions, two instances each, a small model
  mrgc up --regions use1 --instances 1      the least that is a cluster
  mrgc up --engine sim                      no model: an engine simulator
  mrgc up --engine sim --sim-profile a100 --sim-slow use1-0=2
                                            simulators as fast as hardware, one of them slow
  mrgc up --engine sim --versions 1,2       a new version in each region, which gets requests with mrgc canary set
  mrgc up --engine sim --accelerator        a stand-in for AWS Global Accelerator in front of the regions, and failover between them
  mrgc up --model ~/models/qwen3-4b.gguf    a model of your own`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.Out = cmd.OutOrStdout()
			return local.Run(cmd.Context(), options)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&options.Regions, "regions", nil, "regions to run, out of use1, use2, usw2 (default all three)")
	f.IntVar(&options.Instances, "instances", 2, "instances per region")
	f.IntVar(&options.Routers, "routers", 2, "routers per region; Envoy prefers the first, and goes to another when it is gone")
	f.StringVar(&options.Engine, "engine", local.EngineLlama, "llama (llama.cpp with a real model) or sim (engine simulator)")
	f.StringVar(&options.Model, "model", "", "GGUF file of a model of your own (default: the small model that is fetched)")
	f.StringVar(&options.EngineURL, "engine-url", "", "OpenAI-compatible engine that runs already, http://host:port")
	f.StringVar(&options.ModelName, "model-name", "", "name that tenants ask for (default: follows from the model)")
	f.IntVar(&options.Port, "port", 8400, "port of the tenant endpoint on loopback; 0: any free one")
	f.BoolVar(&options.Accelerator, "accelerator", false, "put a stand-in for AWS Global Accelerator in front of the regions, with an address for tenants near each,\nand a controller in each, which set its dials; .mrgc/accelerator.env has what else may (see docs/failover.md)")
	f.StringVar(&options.Policy, "policy", "", "how requests find their instance, a models[].policy of mrgc.yaml (default gate-then-load)")
	f.StringSliceVar(&options.Versions, "versions", nil, "versions of the model, like 1,2: the first has all requests, and all instances but the last of each region,\nwhich are the others' (see mrgc canary)")
	f.StringVar(&options.Sim.Profile, "sim-profile", "", "sim: hardware to imitate, "+simProfiles()+" (default: none, answers come at once)")
	f.IntVar(&options.Sim.Slots, "sim-slots", 0, "sim: requests that an engine runs at once (default: the profile's, at most 64, or 4)")
	f.IntVar(&options.Sim.KVBlocks, "sim-kv-blocks", 0, "sim: blocks of 16 tokens of KV cache (default: the profile's)")
	f.StringToStringVar(&options.Sim.Slow, "sim-slow", nil, "sim: INSTANCE=FACTOR, how many times as long an instance's engine takes, like use1-0=2")
	f.StringToStringVar(&options.Sim.Fail, "sim-fail", nil, "sim: INSTANCE=SHARE, the share of requests that an instance's engine fails at once, like use1-0=0.5")
	f.StringVar(&options.TenantClientCA, "tenant-client-ca", "", "PEM file of CAs whose certificates tenants may show, mrgc.yaml's tenant_client_ca (default none)")
	f.StringVar(&options.FleetDynamoDB, "fleet-dynamodb", "", "URL of a DynamoDB Local that runs already: enclaves then hold a key together, too (mrgc connect --recipient-types)")
	f.StringVar(&options.Store, "store", local.StoreSQLite, "where the cluster's state is: sqlite (a file for all regions) or dynamodb (a DynamoDB Local for each region, made global\ntables of: needs Java, and make dynamodb-local; see docs/state.md)")
	f.StringToStringVar(&options.RegionNetworks, "region-network", nil, "REGION=NAMESPACE@ADDRESS: network namespace in which a region's processes run, and the loopback address that leads there (for tests)")
	_ = f.MarkHidden("region-network")
	f.BoolVar(&options.RestartEngine, "restart-engine", false, "with --wash: have engines run so that full washes can restart them, when mrgc.yaml's wash.restart_engine says so")
	f.BoolVar(&options.Wash, "wash", false, "have instances washed in full, by mrgc wash now and when mrgc.yaml's wash says (see docs/wash.md)")
	f.StringVar(&options.StateDir, "state-dir", ".mrgc", "directory for logs, state and the env file")
	f.StringVar(&options.ToolsDir, "tools-dir", ".tools", "directory for fetched parts")
	complete(cmd, "policy", routing.PolicyNames()...)
	f.BoolVar(&options.AskOnce, "ask", true, "send one sealed request when all is healthy")
	return cmd
}

// simProfiles names the simulator's profiles for a person.
func simProfiles() string {
	var names []string
	for _, p := range batching.Profiles() {
		names = append(names, p.Name)
	}
	return strings.Join(names, " or ")
}

func partsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "parts", Short: "Manage the programs and the model that are fetched", Args: cobra.NoArgs}
	var dir string
	fetch := &cobra.Command{
		Use:   "fetch",
		Short: "Fetch Envoy, llama.cpp and a small model, and verify their checksums",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := parts.Fetch(cmd.Context(), parts.Config{Dir: dir, Out: cmd.OutOrStdout()})
			return err
		},
	}
	fetch.Flags().StringVar(&dir, "tools-dir", ".tools", "directory for fetched parts")
	cmd.AddCommand(fetch)
	return cmd
}
