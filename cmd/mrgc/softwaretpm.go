package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/mrgc/mrgc/internal/nsm"
)

// softwareTPMCommand is what stands for AWS's nitro-tpm-attest on a machine without
// a NitroTPM: it takes that tool's flags, and asks the software one of mrgc up.
func softwareTPMCommand() *cobra.Command {
	var socket, userData, nonce string
	cmd := &cobra.Command{
		Use:    "software-nitro-tpm-attest",
		Short:  "Have the software NitroTPM of mrgc up make a document",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			module, err := nsm.Dial("unix:" + socket)
			if err != nil {
				return err
			}
			var request nsm.Request
			var readUserData, readNonce error
			request.UserData, readUserData = os.ReadFile(userData)
			request.Nonce, readNonce = os.ReadFile(nonce)
			if err := errors.Join(readUserData, readNonce); err != nil {
				return err
			}
			document, err := module.Attest(cmd.Context(), request)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(document)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&socket, "socket", "", "Unix socket of the software NitroTPM")
	f.StringVar(&userData, "user-data", "", "file of the user data")
	f.StringVar(&nonce, "nonce", "", "file of the nonce")
	required(cmd, "socket", "user-data", "nonce")
	return cmd
}
