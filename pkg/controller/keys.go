// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// keysFlags parses the arguments of export-keys and import-keys, which a person runs
// with his own rights.
func keysFlags(command string, args []string, more func(*flag.FlagSet)) (client.Client, string, string, error) {
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	namespace := fs.String("namespace", names.ControlPlaneNamespace, "the control-plane namespace")
	more(fs)
	if err := fs.Parse(args); err != nil {
		return nil, "", "", err
	}
	if fs.NArg() != 1 {
		return nil, "", "", fmt.Errorf("%s: want one argument, the file", command)
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, "", "", err
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, "", "", fmt.Errorf("find the cluster: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	return c, *namespace, fs.Arg(0), err
}

func exportKeys(args []string) error {
	c, namespace, file, err := keysFlags("export-keys", args, func(*flag.FlagSet) {})
	if err != nil {
		return err
	}
	keys, err := repository.ExportKeys(context.Background(), c, namespace)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(keys, "", "  ")
	if err != nil {
		return err
	}
	// Never over something that is there: it may be the only copy of other keys.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("export keys: %w", err)
	}
	_, err = f.Write(append(raw, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("export keys: %w", err)
	}
	fmt.Fprintf(os.Stderr, "%d repositories. %s holds their passwords in clear: whoever has it and the bucket has the backups; "+
		"encrypt it and keep it apart from both cluster and bucket.\n", len(keys.Repositories), file)
	// The file is good without them: whoever may not list Secrets has one, too.
	left, err := repository.LeftPasswords(context.Background(), c, namespace)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v: if there are any, they are not in the file.\n", err)
	}
	for _, secret := range left {
		fmt.Fprintf(os.Stderr, "not in the file: Secret %s, the password of a RepositoryServer that was deleted: make that one again under its old name and export "+
			"once more, or keep a copy of the Secret; if its backups are not needed, delete it.\n", secret)
	}
	return nil
}

func importKeys(args []string) error {
	var maintain bool
	c, namespace, file, err := keysFlags("import-keys", args, func(fs *flag.FlagSet) {
		fs.BoolVar(&maintain, "maintain", false, "maintain the repositories from here: only if the cluster that they come from is gone for good")
	})
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("import keys: %w", err)
	}
	var keys repository.Keys
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&keys); err != nil {
		return fmt.Errorf("import keys: %s is not an export of keys", file) // the text of the error could quote it
	}
	made, err := repository.ImportKeys(context.Background(), c, namespace, keys, maintain)
	for _, name := range made {
		fmt.Fprintf(os.Stderr, "made RepositoryServer %s\n", name)
	}
	return err
}
