package main

import (
	"context"
	"crypto/rand"
	"errors"
	"os/exec"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/routing"
)

// defaultPolicy is the contender that the goals are about.
const defaultPolicy = "MRGC gate-then-load"

var policies = []routing.Policy{
	routing.PolicyGateThenLoad, routing.PolicyScore, routing.PolicyLeastInFlight, routing.PolicyPowerOfTwo, routing.PolicyRoundRobin,
}

// ours are our policies: the real Envoy, our xDS server, our picker.
func ours(tools string) []contender {
	var all []contender
	for _, policy := range policies {
		all = append(all, contender{name: "MRGC " + policy.String(), ours: true, start: ourStart(tools, policy)})
	}
	return all
}

func ourStart(tools string, policy routing.Policy) func(context.Context, string, *engines) (*rig.Running, error) {
	return func(ctx context.Context, dir string, e *engines) (*rig.Running, error) {
		key, err := credential.New(rand.Reader, "bench")
		if err != nil {
			return nil, err
		}
		config := rig.NewRouterConfig(dir, e.Parents, profile().MaxSequences, policy, key)
		picker, input, err := rig.StartPart(ctx, "router", config, &struct{}{})
		if err != nil {
			return nil, err
		}
		var cmd *exec.Cmd
		f, err := rig.SealedFront(config, key)
		if err == nil {
			cmd, err = rig.EnvoyCommand(tools, config, "envoy", "127.0.0.1:"+rig.FreePort())
		}
		var r *rig.Running
		if err == nil {
			r, err = launch(ctx, dir, f, cmd)
		}
		if err != nil {
			_ = input.Close()
			return nil, errors.Join(err, picker.Wait())
		}
		r.Processes = append(r.Processes, picker)
		return r, nil
	}
}
