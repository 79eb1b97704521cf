package local

import (
	"strings"

	"github.com/mrgc/mrgc/internal/identity"
)

// planControllers gives each region a controller where there is an accelerator, whose
// dials are theirs to set. Without one they would decide for nobody, and an idle
// cluster would pay for it.
func (p *plan) planControllers() error {
	if !p.options.Accelerator {
		return nil
	}
	for i := range p.regions {
		if err := p.drawAll(&p.regions[i].controller); err != nil {
			return err
		}
	}
	return nil
}

// controller decides with the other regions' which of them tenants are sent to.
func (p *plan) controller(r region, token string) process {
	args := []string{
		p.bin("mrgc"), "controller", "--config", p.config, "--region", r.name, "--name", controllerName(r),
		"--state", p.controlStore(r.name), "--store", p.fleetStore(r.name), "--identity", "unix:" + p.caSocket,
		"--accelerator", p.acceleratorAddress(), "--admin-listen", r.controller,
	}
	for _, other := range p.regions {
		args = append(args, "--door", other.name+"="+other.tenant)
	}
	return process{name: controllerName(r), rank: rankController, env: append(p.accelerator.credentials.Environment(), token), args: args}
}

func controllerName(r region) string { return string(identity.RoleController) + "-" + r.name }

// routerDrains are a router's flags by which it, and its Envoy, follow what controllers
// have decided.
func (p *plan) routerDrains(r region) []string {
	if r.controller == "" {
		return nil
	}
	return []string{"--state", p.controlStore(r.name), "--envoy-admin", r.envoyAdmin}
}

// stateEnv are lines of .mrgc/env, for `mrgc failover` and `mrgc wash`, and where
// controllers' admins are; none where
// neither controllers decide nor parents wash.
func (p *plan) stateEnv() []string {
	if !p.options.Accelerator && !p.options.Wash {
		return nil
	}
	lines := []string{"export MRGC_STATE=" + shellQuote(p.controlStore(p.anyStore()))}
	for _, r := range p.regions {
		if r.controller != "" {
			lines = append(lines, "export MRGC_CONTROLLER_"+strings.ToUpper(r.name)+"=http://"+r.controller)
		}
	}
	return lines
}
