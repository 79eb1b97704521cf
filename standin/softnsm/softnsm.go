// Package softnsm is a software Nitro Security Module: a stand-in for
// development, for machines that have no enclaves. It answers internal/nsm's
// requests on a Unix socket with documents in exactly the real module's form.
//
//	root, err := softnsm.NewRoot(time.Now())
//	module, err := softnsm.New(softnsm.Config{Root: root, Region: "us-east-1", InstanceID: "use1-0", Role: "development"})
//	err = module.Serve(ctx, listener)
//
// A verifier accepts its documents only if it was told to trust root.PEM() and
// a release of [Measure]'s PCRs. The root is called "MRGC DEVELOPMENT ROOT, NOT
// AWS", and its key exists only in the memory of the process that made it.
//
// It measures the process that asks: the kernel names the peer of the
// connection (SO_PEERCRED), and PCR0 is made of the SHA-384 of the file that
// the peer executes. So two things are true of a document:
//
//   - a process that ran the measured binary asked for it, when it was signed;
//   - a changed binary gets other PCRs, and a verifier refuses it.
//
// This is what makes development like production. It is not a proof, and holds
// against nobody who has root or the same user on the machine: who can trace
// the process, replace its memory, preload a library or read the key of the
// root gets any document. Nor are arguments, environment and configuration of
// the process measured, and a process that exits just after it asked may, in
// theory, have its pid reused before it is measured. Real modules measure the
// image before it runs, outside the reach of whoever owns the machine.
//
// Nothing but `mrgc up` and tests may import this package: never the enclave,
// the parent or the router.
package softnsm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/nsm"
)

// maxConnections are served at once; more wait.
const maxConnections = 16

// connectionTimeout bounds one connection: request, measurement and answer.
const connectionTimeout = nsm.Timeout

// Config says for which instance a module stands.
type Config struct {
	// Root signs the module's certificates. Required.
	Root *Root
	// Region is named in the certificate chain, as AWS's is ("us-east-1").
	// Required: lower-case letters, digits and dashes.
	Region string
	// InstanceID is the parent instance: PCR4, and a part of the module's id.
	// Empty: PCR4 is zero.
	InstanceID string
	// Role is the parent instance's role: PCR3. Empty: PCR3 is zero.
	Role string
	// Host has the module stand for the instance's NitroTPM instead: its documents
	// show these registers, which nothing has measured, to whoever asks.
	Host attest.PCRs
	// Now is the clock. nil: time.Now.
	Now func() time.Time
	// Logger is told about requests that fail. nil: nobody is.
	Logger *slog.Logger
}

// Module is a software security module for one instance. Its methods may be
// called concurrently.
type Module struct {
	measurer measurer
	signer   *signer
	parent   attest.PCRs // PCR3 and PCR4
	host     attest.PCRs // nil: it is an enclave's
	log      *slog.Logger
}

// New makes a module and issues its first certificates.
func New(c Config) (*Module, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := newSigner(c)
	if err != nil {
		return nil, fmt.Errorf("software NSM: %w", err)
	}
	parent := attest.PCRs{}
	if c.Role != "" {
		parent[3] = attest.ExtendedPCR([]byte(c.Role))
	}
	if c.InstanceID != "" {
		parent[4] = attest.ExtendedPCR([]byte(c.InstanceID))
	}
	return &Module{signer: s, parent: parent, host: c.Host, log: c.Logger}, nil
}

// Serve answers requests on a Unix listener, one for each connection, until ctx
// ends. It closes the listener and returns when the last connection is done:
// nil after ctx has ended, else the listener's error.
func (m *Module) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var connections sync.WaitGroup
	defer connections.Wait()
	slots := make(chan struct{}, maxConnections)
	for {
		slots <- struct{}{} // frees itself within connectionTimeout
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("software NSM: %w", err)
		}
		connections.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(connectionTimeout))
			stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			if err := m.answer(conn); err != nil {
				m.log.Warn("attestation request failed", "error", err)
			}
		})
	}
}

// answer returns the error that the peer does not get to see: it is told a code.
func (m *Module) answer(conn net.Conn) error {
	message, err := nsm.ReadFrame(conn, nsm.MaxRequest)
	if err != nil {
		return err
	}
	document, failure := m.attest(conn, message)
	answer, err := nsm.EncodeResponse(document)
	if failure != nil {
		code := nsm.InternalError
		errors.As(failure, &code)
		answer, err = nsm.EncodeError(code)
	}
	if err != nil {
		return err
	}
	return errors.Join(failure, nsm.WriteFrame(conn, answer))
}

func (m *Module) attest(conn net.Conn, message []byte) ([]byte, error) {
	request, err := nsm.DecodeRequest(message)
	if err != nil {
		return nil, err
	}
	if m.host != nil {
		return m.Document(request)
	}
	pcrs, err := m.measurer.peer(conn)
	if err != nil {
		return nil, err
	}
	for i, v := range m.parent {
		pcrs[i] = v
	}
	return m.signer.document(payload{PCRs: bank(pcrs, bankSize)}, request)
}

// Document makes one as an instance's NitroTPM, of a module that stands for it.
func (m *Module) Document(request nsm.Request) ([]byte, error) {
	if m.host == nil {
		return nil, errors.New("software NSM: documents of enclaves are for those that connect, whom it measures")
	}
	return m.signer.document(payload{HostPCRs: bank(m.host, hostBankSize)}, request)
}

// DocumentOf makes one as the module of an enclave that has these registers, which
// nothing here has measured: for an enclave whose own module shows them and signs nothing.
func (m *Module) DocumentOf(pcrs attest.PCRs, request nsm.Request) ([]byte, error) {
	return m.signer.document(payload{PCRs: bank(pcrs, bankSize)}, request)
}
