package local

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/mrgc/mrgc/internal/identity"
)

// checkWash checks what parents need to wash their instances.
func (o *Options) checkWash() error {
	switch {
	case o.RestartEngine && !o.Wash:
		return errors.New("--restart-engine is for full washes: it needs --wash")
	case o.Wash && o.EngineURL != "":
		return errors.New("--wash and --engine-url exclude each other: what files that engine's model has is not known here")
	case o.Wash && o.Engine == EngineSim && o.Sim.Profile == "":
		return errors.New("--wash with --engine sim needs --sim-profile: without one an engine has no cache to be washed")
	}
	return nil
}

// modelSums is what the model's files have to be, as their parents are told.
func (p *plan) modelSums() string { return filepath.Join(p.stateDir, "model.sha256") }

// writeModelSums writes it down, before a request could have come near the files. A
// simulator has no model: the sum is of its program.
func (p *plan) writeModelSums() error {
	if !p.options.Wash {
		return nil
	}
	path := p.modelFile
	if p.options.Engine == EngineSim {
		path = p.bin("mrgc")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	return os.WriteFile(p.modelSums(), []byte(hex.EncodeToString(hash.Sum(nil))+"  "+path+"\n"), 0o600)
}

// washing are an instance's processes where its parent starts the enclave: the
// guard, and the parent.
func (p *plan) washing(in instance, grant func(identity.ID) (string, error)) ([]process, error) {
	tokens := map[identity.Role]string{}
	for _, role := range []identity.Role{identity.RoleGuard, identity.RoleEnclave, identity.RoleParent} {
		var err error
		if tokens[role], err = grant(in.identity(role)); err != nil {
			return nil, err
		}
	}
	command, err := json.Marshal(p.enclave(in, "").args)
	if err != nil {
		return nil, err
	}
	guard := p.guard(in, "MRGC_IDENTITY_TOKEN="+tokens[identity.RoleGuard])
	parent := p.parent(in, "MRGC_IDENTITY_TOKEN="+tokens[identity.RoleParent])
	parent.env = append(parent.env, "MRGC_ENCLAVE_IDENTITY_TOKEN="+tokens[identity.RoleEnclave])
	parent.args = append(parent.args,
		"-enclave-command", string(command), "-state", p.controlStore(in.region), "-model-sums", p.modelSums(),
		"-wash-note", filepath.Join(p.stateDir, "washes", in.id+".json"),
		"-releases", p.manifest, "-releases-key", p.releasing+".pub", "-trust-development-root", p.nsmRoot)
	return []process{guard, parent}, nil
}
