// SPDX-License-Identifier: Apache-2.0

package function

import (
	"context"
	"errors"
	"path"
	"strconv"
	"strings"

	"github.com/kanister-kopia/kanister-kopia/pkg/names"
	"github.com/kanister-kopia/kanister-kopia/pkg/param"
	"github.com/kanister-kopia/kanister-kopia/pkg/repository"
)

// checkRepository finds out whether backups of a prefix can be reached. As in
// Kanister a wrong key and a repository that is not there are outputs, not errors.
type checkRepository struct{ *Data }

func (*checkRepository) Name() string { return "CheckRepository" }

func (*checkRepository) RequiredArgs() []string { return []string{"backupArtifactPrefix"} }

func (f *checkRepository) Arguments() []string {
	return append(append(f.RequiredArgs(), "encryptionKey", "insecureTLS", "image"), podArgNames...)
}

func (*checkRepository) Resumable() bool { return true }

func (f *checkRepository) Exec(ctx context.Context, call Call) (map[string]any, error) {
	var prefix string
	if err := decode(call.Args, "backupArtifactPrefix", &prefix); err != nil {
		return nil, err
	}
	if err := checkProfile(call.Params.Profile); err != nil {
		return nil, err
	}
	// Kanister has a repository for each prefix; here it is one for each namespace.
	namespace := namespaceOf(call.Params)
	if namespace == "" {
		return nil, errors.New("check repository: whose repository cannot be told: give a namespaced object, or a namespace, as the object of the action")
	}
	r, err := ref(call, namespace)
	if err != nil {
		return nil, err
	}
	found, err := f.reach(ctx, call, r, resolvePrefix(call.Params.Profile, prefix))
	// What the server said reaches us as text: it is another process.
	wrong := errors.Is(err, repository.ErrWrongKey) || err != nil && strings.Contains(err.Error(), names.WrongPassword)
	missing := errors.Is(err, repository.ErrNotFound) || err == nil && !found || err != nil && strings.Contains(err.Error(), names.RepositoryMissing)
	if err != nil && !wrong && !missing {
		return nil, err
	}
	return map[string]any{
		"passwordIncorrect": strconv.FormatBool(wrong), "repoUnavailable": strconv.FormatBool(missing), "version": version,
	}, nil
}

// reach opens the repository and says whether it has a backup under the prefix.
func (f *checkRepository) reach(ctx context.Context, call Call, r repository.Ref, prefix string) (bool, error) {
	repo, err := f.Repositories.OpenExisting(ctx, r)
	if err != nil {
		return false, err
	}
	defer repo.Close()
	for record, err := range repo.List(ctx, call.OperationID+"-list", "") {
		if err != nil || isUnder(record.Prefix, prefix) {
			return err == nil, err
		}
	}
	return false, nil
}

// isUnder says whether a backup's prefix is this one or below it: those of
// BackupDataAll are one below for each pod.
func isUnder(prefix, above string) bool {
	prefix, above = path.Clean(prefix), path.Clean(above)
	return prefix == above || strings.HasPrefix(prefix, above+"/")
}

// namespaceOf is the namespace of the action's object.
func namespaceOf(p param.TemplateParams) string {
	switch {
	case p.StatefulSet != nil:
		return p.StatefulSet.Namespace
	case p.Deployment != nil:
		return p.Deployment.Namespace
	case p.PVC != nil:
		return p.PVC.Namespace
	case p.Namespace != nil:
		return p.Namespace.Name
	}
	metadata, _ := p.Object["metadata"].(map[string]any)
	namespace, _ := metadata["namespace"].(string)
	return namespace
}
